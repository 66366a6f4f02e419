//! The `lamina` command.

/// Batch's aggregation makes and drops millions of small states on several threads; glibc keeps much of what they free in
/// arenas of their own: a recompute of 4 million events held 2.0 GiB with it, 1.6 GiB without, and took a tenth longer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lamina::cli::run()
}
