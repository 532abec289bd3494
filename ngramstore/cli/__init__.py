"""The command line: one file a command, results on stdout, talk on stderr."""
