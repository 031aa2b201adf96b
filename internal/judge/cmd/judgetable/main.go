// Command judgetable prints, from the log that package judge writes, the
// independent tools that judged a test run and how many cases each decided.
//
//	judgetable FILE
package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: judgetable FILE")
		os.Exit(2)
	}
	f, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "judgetable:", err)
		os.Exit(1)
	}
	defer f.Close()
	if err := table(os.Stdout, f); err != nil {
		fmt.Fprintln(os.Stderr, "judgetable:", err)
		os.Exit(1)
	}
}

type count struct {
	cases int
	tests map[string]bool
}

// table reads lines "judge TAB test" and writes the table.
func table(w io.Writer, log io.Reader) error {
	judges := map[string]*count{}
	total := 0
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		judge, test, ok := strings.Cut(lines.Text(), "\t")
		if !ok {
			return fmt.Errorf("line %q is not of the form judge, tab, test", lines.Text())
		}
		c := judges[judge]
		if c == nil {
			c = &count{tests: map[string]bool{}}
			judges[judge] = c
		}
		name, _, _ := strings.Cut(test, "/")
		c.cases++
		c.tests[name] = true
		total++
	}
	if err := lines.Err(); err != nil {
		return err
	}
	names := slices.SortedFunc(maps.Keys(judges), func(a, b string) int {
		return cmp.Or(judges[b].cases-judges[a].cases, strings.Compare(a, b))
	})
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "judge\tcases\ttests")
	for _, name := range names {
		c := judges[name]
		fmt.Fprintf(t, "%s\t%d\t%s\n", name, c.cases, strings.Join(slices.Sorted(maps.Keys(c.tests)), ", "))
	}
	fmt.Fprintf(t, "%d judges\t%d\t\n", len(names), total)
	return t.Flush()
}
