package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var out strings.Builder
	err := table(&out, strings.NewReader("qemu-img\tTestA/one\ncryptsetup\tTestA/one\ncryptsetup\tTestA/two\ncryptsetup\tTestB\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{"judge cases tests", "cryptsetup 3 TestA, TestB", "qemu-img 1 TestA", "2 judges 4"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q, want %q", got, want)
	}
	if err := table(&out, strings.NewReader("no tab\n")); err == nil {
		t.Error("a broken line is taken")
	}
}
