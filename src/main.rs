//! Arguments, logging, OS signals, exit code; nothing else.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use onelog::causes::with_causes;
use onelog::cli::{self, Arguments, CommandError};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the async runtime: {error}")),
    };
    let mut out = std::io::stdout().lock();
    match runtime.block_on(cli::execute(arguments, &mut out)) {
        Ok(code) => ExitCode::from(code),
        // Whoever read our output has seen enough.
        Err(CommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => fail(&with_causes(&error)),
    }
}

fn fail(message: &str) -> ExitCode {
    // Nobody is left to tell when standard error is gone as well; the exit code still says it.
    let _written = writeln!(std::io::stderr(), "onelog: {message}");
    ExitCode::FAILURE
}
