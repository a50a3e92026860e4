// Thousands of goroutines and system calls, while the runtime preempts itself with SIGURG.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// Every goroutine makes calls that block and calls that the filter looks at.
func files(count int) {
	dir, err := os.MkdirTemp(".", "files")
	check(err)
	var wait sync.WaitGroup
	var bytesRead int64
	limit := make(chan struct{}, 64)
	for i := 0; i < count; i++ {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			limit <- struct{}{}
			defer func() { <-limit }()
			name := filepath.Join(dir, fmt.Sprint(i))
			check(os.Mkdir(name, 0o700))
			check(os.WriteFile(name+"/file", []byte("0123456789"), 0o600))
			content, err := os.ReadFile(name + "/file")
			check(err)
			atomic.AddInt64(&bytesRead, int64(len(content)))
			check(os.Rename(name+"/file", name+"/moved"))
			check(os.RemoveAll(name))
		}(i)
	}
	wait.Wait()
	check(os.Remove(dir))
	fmt.Println("files:", bytesRead)
}

// Long loops, which only a signal can preempt, beside goroutines that pass a token around.
func preemption() {
	stop := make(chan struct{})
	var spun int64
	for i := 0; i < 2*runtime.NumCPU(); i++ {
		go func() {
			for {
				for j := 0; j < 1<<20; j++ {
					atomic.AddInt64(&spun, 1)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
	}
	first := make(chan int)
	last := first
	for i := 0; i < 5000; i++ {
		next := make(chan int)
		go func(from, to chan int) { to <- 1 + <-from }(last, next)
		last = next
	}
	first <- 0
	fmt.Println("token:", <-last)
	close(stop)
}

func loopback() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(connection, connection)
				connection.Close()
			}()
		}
	}()
	var wait sync.WaitGroup
	var echoed int64
	for i := 0; i < 200; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			connection, err := net.Dial("tcp", listener.Addr().String())
			check(err)
			message := bytes.Repeat([]byte("x"), 10000)
			go func() {
				connection.Write(message)
				connection.(*net.TCPConn).CloseWrite()
			}()
			answer, err := io.ReadAll(connection)
			check(err)
			atomic.AddInt64(&echoed, int64(len(answer)))
			connection.Close()
		}()
	}
	wait.Wait()
	listener.Close()
	fmt.Println("echoed:", echoed)
}

func children() {
	var wait sync.WaitGroup
	var sum int64
	for i := 0; i < 50; i++ {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			err := exec.Command("sh", "-c", fmt.Sprintf("exit %d", i)).Run()
			if exit, ok := err.(*exec.ExitError); ok {
				atomic.AddInt64(&sum, int64(exit.ExitCode()))
			}
		}(i)
	}
	wait.Wait()
	fmt.Println("children:", sum)
}

// System calls that a sentry serves, under preemption: each must come back exactly once.
func served() {
	var wait sync.WaitGroup
	var answers int64
	for i := 0; i < 20; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			runtime.LockOSThread()
			for j := 0; j < 200; j++ {
				// SYSLOG_ACTION_SIZE_BUFFER
				_, _, errno := syscall.Syscall(syscall.SYS_SYSLOG, 10, 0, 0)
				if errno == 0 || errno == syscall.EPERM {
					atomic.AddInt64(&answers, 1)
				} else {
					fmt.Println("syslog:", errno)
				}
			}
		}()
	}
	wait.Wait()
	fmt.Println("served:", answers)
}

func main() {
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGUSR1)
	files(3000)
	preemption()
	loopback()
	children()
	served()
	check(syscall.Kill(os.Getpid(), syscall.SIGUSR1))
	fmt.Println("signal:", <-signals)
	for i := 0; i < 5; i++ {
		runtime.GC()
	}
	timer := time.NewTimer(10 * time.Millisecond)
	<-timer.C
	fmt.Println("all done")
}
