package tokenstore

// Option names an option of this package that a person can change. A program that reads
// its options from elsewhere can say there what that person has to write.
type Option string

// The options that findings and errors name.
const (
	OptionURL          Option = "DialOptions.URL"
	OptionTLS          Option = "DialOptions.TLS"
	OptionShards       Option = "Options.Shards"
	OptionWaitReplicas Option = "Options.WaitReplicas"
)

// OptionError is an error that remains until an option is changed.
type OptionError struct {
	Option Option
	Err    error
}

func (e *OptionError) Error() string { return e.Err.Error() }

func (e *OptionError) Unwrap() error { return e.Err }
