//! The program `sipsim-relay`: parses the command line, runs one command, gives its exit code.

fn main() {}
