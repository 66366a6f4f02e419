//! The `lamina` command.

fn main() -> std::process::ExitCode {
    lamina::cli::run()
}
