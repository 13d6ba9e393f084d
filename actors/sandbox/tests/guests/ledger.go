// A guest built by Go's own toolchain: the same accounts as ledger.c, kept in a map of a language with a
// garbage collector, goroutines, and a runtime whose state lies in globals that no module exports.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -ldflags="-s -w" -o ledger-go.wasm ledger.go
//
// It needs a clock and chance: the runtime reads both before anything else. It leaves out the large packages
// (fmt, encoding/json, os), so that a test need not compile what it does not show.
package main

import (
	"encoding/binary"
	"slices"
	"strconv"
	"syscall"
	"unsafe"
)

func main() {}

var (
	accounts = map[string]int64{}
	chance   = uint64(0x9e3779b97f4a7c15)
	// What was handed to the host, so that the collector leaves it where it is.
	held   = map[unsafe.Pointer][]byte{}
	answer []byte
	words  []byte
)

//go:wasmexport us_alloc
func usAlloc(length int32) unsafe.Pointer {
	if length <= 0 {
		return nil
	}
	room := make([]byte, length)
	at := unsafe.Pointer(&room[0])
	held[at] = room
	return at
}

//go:wasmexport us_free
func usFree(at unsafe.Pointer, length int32) { delete(held, at) }

func answered(ret unsafe.Pointer, text []byte) {
	answer = binary.LittleEndian.AppendUint32(nil, uint32(len(text)))
	answer = append(answer, text...)
	put(ret, uint32(uintptr(unsafe.Pointer(&answer[0]))), 0, 0)
}

func failed(ret unsafe.Pointer, code uint32, why string) {
	words = append([]byte(why), 0)
	put(ret, 0, code, uint32(uintptr(unsafe.Pointer(&words[0]))))
}

func put(ret unsafe.Pointer, three ...uint32) {
	for n, word := range three {
		binary.LittleEndian.PutUint32(unsafe.Slice((*byte)(unsafe.Add(ret, 4*n)), 4), word)
	}
}

// Adds a drawn amount to the account of this name, which is opened if need be.
//
//go:wasmexport draw
func draw(ret, at unsafe.Pointer, length int32) {
	if length == 0 {
		failed(ret, 28, "a name has a letter")
		return
	}
	chance ^= chance << 13
	chance ^= chance >> 7
	chance ^= chance << 17
	name := string(unsafe.Slice((*byte)(at), length))
	accounts[name] += int64(chance%2001) - 1000
	answered(ret, strconv.AppendInt(nil, accounts[name], 10))
}

//go:wasmexport read
func read(ret, at unsafe.Pointer, length int32) {
	balance, found := accounts[string(unsafe.Slice((*byte)(at), length))]
	if !found {
		failed(ret, 2, "there is no such account")
		return
	}
	answered(ret, strconv.AppendInt(nil, balance, 10))
}

//go:wasmexport close
func closeAccount(ret, at unsafe.Pointer, length int32) {
	name := string(unsafe.Slice((*byte)(at), length))
	balance, found := accounts[name]
	if !found {
		failed(ret, 2, "there is no such account")
		return
	}
	delete(accounts, name)
	answered(ret, strconv.AppendInt(nil, balance, 10))
}

// Every account, as JSON, by way of a goroutine: so its scheduler has state too.
//
//go:wasmexport list
func list(ret, at unsafe.Pointer, length int32) {
	done := make(chan []string)
	go func() {
		names := []string{}
		for name := range accounts {
			names = append(names, name)
		}
		slices.Sort(names)
		done <- names
	}()
	text := []byte{'['}
	for n, name := range <-done {
		if n > 0 {
			text = append(text, ',')
		}
		text = append(text, `{"name":`...)
		text = strconv.AppendQuote(text, name)
		text = append(text, `,"balance":`...)
		text = strconv.AppendInt(text, accounts[name], 10)
		text = append(text, '}')
	}
	answered(ret, append(text, ']'))
}

// Opens what no policy grants, and says what came of it.
//
//go:wasmexport escape
func escape(ret, at unsafe.Pointer, length int32) {
	path := string(unsafe.Slice((*byte)(at), length))
	_, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err == nil {
		answered(ret, []byte("opened"))
		return
	}
	println("opening", path, "gave", err.Error())
	answered(ret, []byte(err.Error()))
}

// Spoils every balance, and then does what no program may.
//
//go:wasmexport spoil
func spoil(by int32) int32 {
	for name := range accounts {
		accounts[name] += int64(by)
	}
	chance = uint64(by)
	panic("spoiled on purpose")
}
