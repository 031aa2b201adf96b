//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// ciphers measures XTS-AES-256 on one core beside golang.org/x/crypto/xts: the
// benchmarks of the package, all of them in each run, so that a ratio is of
// two figures that were taken within a second or two.
func ciphers(runs int) error {
	dir, err := os.MkdirTemp("", "lockstep-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "xts.test")
	build := exec.Command("go", "test", "-c", "-o", program, "./diskcrypt/internal/xts")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the benchmarks: %w: %s", err, out)
	}
	speed := map[string][]float64{} // MB/s by "path/sector size", run by run
	for range runs {
		out, err := exec.Command(program, "-test.run", "^$", "-test.bench", "^BenchmarkDecrypt$", "-test.benchtime", "200ms", "-test.cpu", "1").Output()
		if err != nil {
			return fmt.Errorf("run the benchmarks: %w", err)
		}
		lines := bufio.NewScanner(bytes.NewReader(out))
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			if len(f) < 6 || f[5] != "MB/s" {
				continue
			}
			v, err := strconv.ParseFloat(f[4], 64)
			if err != nil {
				return fmt.Errorf("read a benchmark's line: %w", err)
			}
			name := strings.TrimPrefix(f[0], "BenchmarkDecrypt/")
			speed[name] = append(speed[name], v)
		}
	}
	fmt.Printf("XTS-AES-256, decrypting 1 MiB on one core of %s/%s, median of %d runs\n\n", runtime.GOOS, runtime.GOARCH, runs)
	fmt.Println("| path | sector | GB/s | beside x/crypto, same run: median | least | most |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, size := range []string{"512", "4096"} {
		beside := speed["xcrypto/"+size]
		for _, path := range []string{"asm", "portable", "xcrypto"} {
			figures := speed[path+"/"+size]
			if len(figures) != len(beside) || len(figures) == 0 {
				continue // this machine has no such path
			}
			ratios := make([]float64, len(figures))
			for i := range figures {
				ratios[i] = figures[i] / beside[i]
			}
			slices.Sort(figures)
			slices.Sort(ratios)
			n := len(ratios)
			fmt.Printf("| %s | %s | %.2f | %.1f | %.1f | %.1f |\n", path, size, figures[n/2]/1000, ratios[n/2], ratios[0], ratios[n-1])
		}
	}
	return nil
}
