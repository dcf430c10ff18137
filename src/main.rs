//! The `orderd` program. All code is in the library; start reading in `lib.rs`.

use std::process::ExitCode;

/// Orders cause many small allocations that one thread makes and another frees. Measured with `make bench`, alternating:
/// mimalloc takes 10 % more CPU time per order than jemalloc, and 59 MiB instead of 35; the system's allocator took a
/// third more CPU time than mimalloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    orderd::cli::main()
}
