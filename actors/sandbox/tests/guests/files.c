/* A guest that uses its C library as programs do: arguments, environment, time, chance, output, files.
 *
 *   zig cc -target wasm32-wasi -mexec-model=reactor -O2 -s -o files.wasm files.c
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT(name) __attribute__((export_name(name)))

struct outcome {
    void *result;
    uint32_t error_code;
    const char *error_message;
};

static struct {
    uint32_t length;
    char bytes[4096];
} answer;

EXPORT("us_alloc") void *us_alloc(uint32_t length) { return malloc(length); }
EXPORT("us_free") void us_free(void *at, uint32_t length) { (void)length; free(at); }

static struct outcome answered(void) {
    answer.length = strlen(answer.bytes);
    return (struct outcome){&answer, 0, 0};
}

static struct outcome failed(void) {
    return (struct outcome){0, errno, strerror(errno)};
}

static char path[256];

static const char *text(const char *at, uint32_t length) {
    if (length >= sizeof path) length = sizeof path - 1;
    memcpy(path, at, length);
    path[length] = 0;
    return path;
}

/* Appends a line to the file of this name and gives back the whole of it. */
EXPORT("append") struct outcome append(const char *at, uint32_t length) {
    FILE *file = fopen(text(at, length), "a+");
    if (!file) return failed();
    static int lines;
    fprintf(file, "line %d\n", ++lines);
    fflush(file);
    rewind(file);
    size_t n = fread(answer.bytes, 1, sizeof answer.bytes - 1, file);
    answer.bytes[n] = 0;
    fclose(file);
    return answered();
}

EXPORT("remove") struct outcome remove_file(const char *at, uint32_t length) {
    if (unlink(text(at, length))) return failed();
    answer.bytes[0] = 0;
    return answered();
}

/* How long the file of this name is. */
EXPORT("size") struct outcome size(const char *at, uint32_t length) {
    struct stat found;
    if (stat(text(at, length), &found)) return failed();
    snprintf(answer.bytes, sizeof answer.bytes, "%lld", (long long)found.st_size);
    return answered();
}

/* The variable of this name. */
EXPORT("variable") struct outcome variable(const char *at, uint32_t length) {
    const char *value = getenv(text(at, length));
    snprintf(answer.bytes, sizeof answer.bytes, "%s", value ? value : "(none)");
    return answered();
}

/* Says something, and what time it is; -1 if that is denied. */
EXPORT("greet") struct outcome greet(const char *at, uint32_t length) {
    int said = printf("hello, %s\n", text(at, length)) >= 0 && !fflush(stdout);
    struct timespec now;
    int told = !clock_gettime(CLOCK_REALTIME, &now);
    snprintf(answer.bytes, sizeof answer.bytes, "%d %lld", said, told ? (long long)now.tv_sec : -1);
    return answered();
}

/* Eight bytes of chance; the error if they are denied. */
EXPORT("chance") struct outcome chance(const char *at, uint32_t length) {
    (void)at, (void)length;
    uint64_t drawn;
    if (getentropy(&drawn, sizeof drawn)) return failed();
    snprintf(answer.bytes, sizeof answer.bytes, "%llu", (unsigned long long)drawn);
    return answered();
}

/* Sleeps, and says by how many milliseconds the clock has moved. */
EXPORT("nap") struct outcome nap(const char *at, uint32_t length) {
    struct timespec before, after;
    if (clock_gettime(CLOCK_MONOTONIC, &before)) return failed();
    long ms = atol(text(at, length));
    struct timespec wait = {ms / 1000, ms % 1000 * 1000000};
    if (nanosleep(&wait, 0)) return failed();
    if (clock_gettime(CLOCK_MONOTONIC, &after)) return failed();
    long long moved = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000;
    snprintf(answer.bytes, sizeof answer.bytes, "%lld", moved);
    return answered();
}

EXPORT("leave") void leave(int32_t code) { exit(code); }
EXPORT("fail") void fail(void) { abort(); }
