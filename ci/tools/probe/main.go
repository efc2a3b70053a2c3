// Command probe is the one program of the image the cluster's tests run in pods: it serves, resolves and fetches.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"
)

const usage = "usage: probe serve ADDRESS | resolve NAME | get URL | gather URL"

// As many questions as it takes to meet both of two equal answerers, but for one chance in half a million.
const questions = 20

func main() {
	if len(os.Args) != 3 {
		fail(usage)
	}
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2])
	case "resolve":
		resolve(os.Args[2])
	case "get":
		fmt.Print(get(os.Args[2]))
	case "gather":
		gather(os.Args[2])
	default:
		fail(usage)
	}
}

// serve answers every request with the pod's name until it is told to end.
func serve(address string) {
	name, _ := os.Hostname()
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, name) })
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fail(err.Error())
	}
	fmt.Println("serving", name)
	go http.Serve(listener, handler)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	<-ended
}

// resolve prints a name's addresses and, on stderr, how long the answer took.
func resolve(name string) {
	started := time.Now()
	addresses, err := net.DefaultResolver.LookupHost(context.Background(), name)
	if err != nil {
		fail(err.Error())
	}
	sort.Strings(addresses)
	fmt.Println(strings.Join(addresses, " "))
	fmt.Fprintln(os.Stderr, time.Since(started))
}

// gather asks many times, on a new connection each time, and prints the different answers.
func gather(url string) {
	seen := map[string]bool{}
	for range questions {
		seen[get(url)] = true
	}
	for answer := range seen {
		fmt.Print(answer)
	}
}

func get(url string) string {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		fail(err.Error())
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		fail(err.Error())
	}
	return string(body)
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(1)
}
