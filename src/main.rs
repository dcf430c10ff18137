//! The `orderd` program. Everything is in the library; start reading there.

use std::process::ExitCode;

/// Orders are many small allocations that one thread makes and another frees. Measured with `make bench`, in turns:
/// mimalloc takes a tenth more CPU time per order, and 59 MiB where this takes 35; the system's allocator took a
/// third more CPU time than mimalloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    orderd::cli::main()
}
