// Reads the clock, sleeps by it in several goroutines, and says the time it began.
package main

import (
	"fmt"
	"os"
	"sync"
	"time"
)

func main() {
	begin := time.Now()
	var group sync.WaitGroup
	for i := 0; i < 20; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			time.Sleep(2 * time.Second)
		}()
	}
	group.Wait()
	passed := time.Since(begin)
	if passed < 2*time.Second {
		fmt.Println("slept for", passed)
		os.Exit(1)
	}
	if time.Now().Sub(begin).Round(0) < 0 {
		fmt.Println("the clock runs backwards")
	}
	fmt.Println(begin.Unix())
}
