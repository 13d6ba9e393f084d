/* A guest built by an ordinary C toolchain: accounts in a list of its allocator's making, and a
 * generator of numbers in static memory. Bytes come and go as `us_alloc` and the return area have it.
 *
 *   zig cc -target wasm32-wasi -mexec-model=reactor -O2 -s -Wl,-z,stack-size=65536 -o ledger.wasm ledger.c
 *
 * (zig 0.17.0). It imports a few functions of WASI preview 1 and works without any grant.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))

struct account {
    struct account *next;
    int64_t balance;
    uint32_t length;
    char name[];
};

struct answer {
    uint32_t length;
    char bytes[64];
};

struct outcome {
    struct answer *result;
    uint32_t error_code;
    const char *error_message;
};

static struct account *accounts;
static uint64_t chance = 0x9e3779b97f4a7c15u;
static struct answer answer;

static struct outcome failed(uint32_t code, const char *why) {
    return (struct outcome){0, code, why};
}

static struct outcome number(int64_t value) {
    char digits[24];
    uint32_t n = 0;
    uint64_t left = value < 0 ? -(uint64_t)value : (uint64_t)value;
    do digits[n++] = '0' + left % 10; while (left /= 10);
    if (value < 0) digits[n++] = '-';
    answer.length = n;
    for (uint32_t i = 0; i < n; i++) answer.bytes[i] = digits[n - 1 - i];
    return (struct outcome){&answer, 0, 0};
}

static struct account *find(const char *name, uint32_t length) {
    for (struct account *a = accounts; a; a = a->next)
        if (a->length == length && !memcmp(a->name, name, length)) return a;
    return 0;
}

EXPORT("us_alloc") void *us_alloc(uint32_t length) { return malloc(length); }
EXPORT("us_free") void us_free(void *at, uint32_t length) { (void)length; free(at); }

/* Adds a drawn amount to the account of this name, which is opened if need be. */
EXPORT("draw") struct outcome draw(const char *name, uint32_t length) {
    if (!length) return failed(28, "a name has a letter");
    chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
    struct account *a = find(name, length);
    if (!a) {
        if (!(a = malloc(sizeof *a + length))) return failed(28, "no memory for another account");
        a->next = accounts, a->balance = 0, a->length = length;
        memcpy(a->name, name, length);
        accounts = a;
    }
    a->balance += (int64_t)(chance % 2001) - 1000;
    return number(a->balance);
}

EXPORT("read") struct outcome read_balance(const char *name, uint32_t length) {
    struct account *a = find(name, length);
    return a ? number(a->balance) : failed(2, "there is no such account");
}

EXPORT("close") struct outcome close_account(const char *name, uint32_t length) {
    for (struct account **at = &accounts; *at; at = &(*at)->next) {
        struct account *a = *at;
        if (a->length != length || memcmp(a->name, name, length)) continue;
        int64_t balance = a->balance;
        *at = a->next;
        free(a);
        return number(balance);
    }
    return failed(2, "there is no such account");
}

/* Spoils every balance, and then does what no program may. */
EXPORT("spoil") int32_t spoil(int32_t by) {
    for (struct account *a = accounts; a; a = a->next) a->balance += by;
    chance = by;
    __builtin_trap();
}
