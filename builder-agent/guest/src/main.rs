//! The program inside a sandbox. As PID 1 of a micro-VM it is `/init`; in the weaker namespace sandbox it is started
//! by bubblewrap as `guest --stream-fd N --store-fd N`. Both run one job and end.
//!
//! The program trusts the host, but nothing that the builder does.
#![allow(unsafe_code)]

mod builder;
mod builtin;
mod listing;
mod machine;
mod namespace;
mod outputs;
mod run;
mod stream;
mod sys;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    let init_ns = sys::monotonic_ns();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--stream-fd", stream, "--store-fd", store] => {
            let inherited = |fd: &str| fd.parse().map_err(std::io::Error::other).and_then(sys::inherited);
            let served = inherited(stream)
                .and_then(|stream| Ok((stream, inherited(store)?)))
                .and_then(|(stream, store)| namespace::main(stream, store, init_ns));
            match served {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => fail(&format!("--stream-fd {stream} --store-fd {store}: {e}")),
            }
        }
        // The guest has started this program again, as a builder. The builder is PID 1 too, of its own PID namespace.
        ["--builtin", name, out] => builtin::main(name, std::path::Path::new(out)),
        // The kernel passes on those words of its command line that it does not know.
        _ if std::process::id() == 1 => machine::main(init_ns),
        _ => fail(
            "this runs inside a sandbox: as /init of a micro-VM, or with --stream-fd N --store-fd N; see docs/design/guest.md",
        ),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("guest: {why}");
    ExitCode::FAILURE
}
