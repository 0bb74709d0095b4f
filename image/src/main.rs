//! `netboot-image`: makes, serves and tries the box's netboot release. Command line only; the work is in the library.

use clap::{Args, Parser, Subcommand};
use netboot_image::{
    apt::Apt,
    guest,
    kernel_package::{Flavour, KernelPackage},
};
use std::path::PathBuf;
use std::process::ExitCode;

type Failure = Box<dyn std::error::Error>;

/// Make, serve and try the netboot release of a Barnraiser box.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Put together what a micro-VM boots: vmlinux, initrd, guest, busybox, kernel-version.
    Guest(GuestArgs),
}

/// Where Debian packages come from.
#[derive(Args)]
struct PackageArgs {
    /// Folder for downloads and unpacked packages, kept between runs.
    #[arg(long, default_value = "target/cache")]
    cache: PathBuf,
    /// Debian mirror; without it the one this machine's apt is set up with.
    #[arg(long)]
    mirror: Option<String>,
    /// Fetch the package lists even when the ones at hand are less than an hour old.
    #[arg(long)]
    update: bool,
}

#[derive(Args)]
struct GuestArgs {
    /// Folder that receives the files.
    #[arg(long)]
    out: PathBuf,
    /// An unpacked linux-image package, or `auto` to fetch Debian's cloud kernel with apt.
    #[arg(long, default_value = "auto", alias = "kernel-deb-root")]
    kernel_deb: String,
    /// The statically linked guest binary.
    #[arg(long)]
    guest_bin: PathBuf,
    /// A statically linked busybox.
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
    #[command(flatten)]
    packages: PackageArgs,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let result = match Cli::parse().command {
        Verb::Guest(args) => make_guest(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make_guest(args: GuestArgs) -> Result<(), Failure> {
    let kernel = if args.kernel_deb == "auto" {
        let packages = &args.packages;
        let apt = Apt::open(&packages.cache, packages.mirror.as_deref(), packages.update)?;
        KernelPackage::fetch(&apt, &packages.cache, Flavour::Cloud)?
    } else {
        KernelPackage::open(args.kernel_deb.as_ref())?
    };
    let files = guest::assemble(&kernel, &args.guest_bin, &args.busybox)?;
    guest::write(&files, &args.out)?;
    println!(
        "{}: kernel {}, vmlinux {} MiB, initrd {} KiB",
        args.out.display(),
        files.kernel_version,
        files.vmlinux.len() >> 20,
        files.initrd.len() >> 10
    );
    Ok(())
}
