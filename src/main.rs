//! The `orderd` program. Everything is in the library; start reading there.

use std::process::ExitCode;

/// Orders are many small allocations that one thread makes and another frees; the system's allocator spends a
/// seventh of the daemon's time on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    orderd::cli::main()
}
