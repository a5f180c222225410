package refreshtoken

import "testing"

func BenchmarkParse(b *testing.B) {
	c := mustNew(b, secretOf(1))
	text := c.Encode(example())
	forged := mustNew(b, secretOf(2)).Encode(example())
	b.Run("good", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Parse(text); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("forged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Parse(forged); err == nil {
				b.Fatal("accepted")
			}
		}
	})
}

func BenchmarkNext(b *testing.B) {
	c := mustNew(b, secretOf(1))
	t := example()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Next(t); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	c := mustNew(b, secretOf(1))
	t := example()
	b.ReportAllocs()
	for b.Loop() {
		_ = c.Encode(t)
	}
}
