//go:build race

package tokenstore_test

const raceDetector = true
