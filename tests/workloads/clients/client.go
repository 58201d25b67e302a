// client BASE LIST: as client.py, with net/http.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

func main() {
	base, list := os.Args[1], os.Args[2]
	file, err := os.Open(list)
	if err != nil {
		panic(err)
	}
	client := &http.Client{Timeout: 20 * time.Second}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var method, path string
		var size int
		fmt.Sscan(lines.Text(), &method, &path, &size)
		var body io.Reader
		if size > 0 {
			body = strings.NewReader(strings.Repeat("x", size))
		}
		request, err := http.NewRequest(method, base+path, body)
		if err != nil {
			panic(err)
		}
		response, err := client.Do(request)
		if err != nil {
			fmt.Println(path, "error", kind(err))
			continue
		}
		bytes, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			fmt.Println(path, response.StatusCode, "error", kind(err))
			continue
		}
		fmt.Println(path, response.StatusCode, len(bytes), crc32.ChecksumIEEE(bytes))
	}
}

// Messages of errors name ports, which differ from run to run.
func kind(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "unexpected end"
	case errors.Is(err, io.EOF):
		return "end"
	case errors.Is(err, syscall.EPIPE):
		return "broken pipe"
	}
	return "other"
}
