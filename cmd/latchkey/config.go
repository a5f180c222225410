package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/terminal"
)

func newConfig() *cobra.Command {
	var asJSON, asEnv bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the settings in force, or everything that is wrong with them",
		Long: `Show the settings that this environment gives, secrets redacted, or else everything
that is wrong with them. --env writes an example environment file that explains every
setting.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asEnv {
				_, err := fmt.Fprint(cmd.OutOrStdout(), config.EnvFile())
				return err
			}
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			if asJSON {
				return printConfigJSON(cmd, cfg)
			}
			return printConfig(cmd, cfg)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON object")
	cmd.Flags().BoolVar(&asEnv, "env", false, "write the example environment file instead")
	cmd.MarkFlagsMutuallyExclusive("json", "env")
	return cmd
}

func printConfig(cmd *cobra.Command, cfg *config.Config) error {
	for _, v := range cfg.Effective() {
		value := v.Value
		if value != "" {
			value = terminal.Printable(value)
		}
		mark := ""
		if v.Default {
			mark = "  (default)"
		}
		if err := say(cmd, "%s=%s%s", v.Name, value, mark); err != nil {
			return err
		}
	}
	for _, w := range cfg.Warnings() {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	return nil
}

func printConfigJSON(cmd *cobra.Command, cfg *config.Config) error {
	type setting struct {
		Name    string `json:"name"`
		Value   string `json:"value"`
		Default bool   `json:"default"`
	}
	var shown struct {
		Settings []setting `json:"settings"`
		Warnings []string  `json:"warnings"`
	}
	for _, v := range cfg.Effective() {
		shown.Settings = append(shown.Settings, setting(v))
	}
	shown.Warnings = append([]string{}, cfg.Warnings()...)
	return printJSON(cmd.OutOrStdout(), shown)
}
