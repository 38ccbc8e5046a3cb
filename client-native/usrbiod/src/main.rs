//! The `usrbiod` command.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    usrbiod::cli::Cli::parse().run()
}
