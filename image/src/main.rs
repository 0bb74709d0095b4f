//! `netboot-image`: makes, serves and tries the box's netboot release. Command line only; the work is in the library.

use clap::{Args, Parser, Subcommand};
use netboot_image::{
    accel,
    archive::{self, Archive, Kind},
    base, fetch, guest, home,
    kernel_package::{Flavour, KernelPackage},
    manifest, release, roster, serve, tool, tree, try_box,
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
    /// Make the root file system of homes: home.erofs.
    Home(HomeArgs),
    /// Make a release: kernel, initrd, boot.ipxe, manifest.json.
    Build(Box<BuildArgs>),
    /// Download Debian packages and upstream sources under plain names, as the examples want them.
    Fetch(FetchArgs),
    /// Unpack Debian packages and all they depend on into a folder, without installing them.
    Tree(TreeArgs),
    /// Serve a release to booting machines over HTTP.
    Serve(ServeArgs),
    /// Boot a release in QEMU, through iPXE and HTTP, and wait until ssh answers.
    Try(TryArgs),
}

/// Where Debian packages come from.
#[derive(Args)]
struct PackageArgs {
    /// Folder for downloads and unpacked packages, kept between runs.
    #[arg(long, default_value = "target/cache", overrides_with = "cache")]
    cache: PathBuf,
    /// Debian mirror; without it the one this machine's apt is set up with.
    #[arg(long)]
    mirror: Option<String>,
    /// The keys that may sign its lists.
    #[arg(long, default_value = archive::KEYRING)]
    keyring: PathBuf,
    /// Fetch the package lists even when the ones at hand are less than an hour old.
    #[arg(long)]
    update: bool,
}

impl PackageArgs {
    fn open(&self, suite: &str, kind: Kind) -> Result<Archive, archive::ArchiveError> {
        Archive::open(&archive::Options {
            cache: &self.cache,
            suite,
            kind,
            mirror: self.mirror.as_deref(),
            keyring: &self.keyring,
            update: self.update,
        })
    }
}

#[derive(Args)]
struct FetchArgs {
    /// Folder that receives `debs` and `sources`.
    #[arg(long)]
    out: PathBuf,
    /// The Debian release to take them from.
    #[arg(long, default_value = archive::SUITE)]
    suite: String,
    /// A binary package. May be repeated.
    #[arg(long = "deb", value_name = "NAME")]
    debs: Vec<String>,
    /// A source package, of which the upstream archive is taken. May be repeated.
    #[arg(long = "source", value_name = "NAME")]
    sources: Vec<String>,
    #[command(flatten)]
    packages: PackageArgs,
}

#[derive(Args)]
struct TreeArgs {
    /// The folder, which must be empty or not there.
    #[arg(long)]
    out: PathBuf,
    /// The Debian release to take the packages from.
    #[arg(long, default_value = archive::SUITE)]
    suite: String,
    /// A package. May be repeated.
    #[arg(long = "package", value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    packages: PackageArgs,
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

#[derive(Args)]
struct HomeArgs {
    /// Folder that receives home.erofs.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    contents: HomeContents,
    #[command(flatten)]
    packages: PackageArgs,
}

/// What a home is made of.
#[derive(Args)]
struct HomeContents {
    /// Files laid over the base system of homes. May be repeated; later folders win.
    #[arg(long, default_value = "image/home")]
    home_rootfs: Vec<PathBuf>,
    /// A Debian package on top of those every home has. May be repeated.
    #[arg(long = "home-package", value_name = "NAME")]
    home_extra: Vec<String>,
}

impl HomeContents {
    fn make(&self, archive: &mut Archive, cache: &std::path::Path) -> Result<home::Home, home::HomeError> {
        let base = base::make(archive, cache, &home::recipe(&self.home_extra))?;
        home::make(&base, &self.home_rootfs)
    }
}

#[derive(Args)]
struct BuildArgs {
    /// Folder that receives the release.
    #[arg(long)]
    out: PathBuf,
    /// The builder-agent binary.
    #[arg(long, default_value = "target/release/builder-agent")]
    agent: PathBuf,
    /// The access-manager binary.
    #[arg(long, default_value = "target/release/access-manager")]
    access_manager: PathBuf,
    /// The statically linked guest binary.
    #[arg(long, alias = "guest-bin", default_value = "target/x86_64-unknown-linux-gnu/release/guest")]
    guest: PathBuf,
    /// A statically linked busybox.
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// Files laid over the base system. May be repeated; later folders win.
    #[arg(long, default_value = "image/rootfs")]
    rootfs: Vec<PathBuf>,
    /// A Debian package on top of those every box has, e.g. firmware. May be repeated.
    #[arg(long = "package", value_name = "NAME")]
    extra: Vec<String>,
    /// Git repository the box fetches its roster from, at boot and every minute.
    #[arg(long)]
    roster_repo: Option<String>,
    /// Branch of the roster repository.
    #[arg(long, default_value = "main")]
    branch: String,
    /// The name of this box in `hosts` of a roster for several boxes: leaves out the members of the others.
    #[arg(long, value_name = "NAME")]
    roster_host: Option<String>,
    #[command(flatten)]
    baked: BakedRoster,
    /// Which of Debian's kernels the box boots; its micro-VMs always run the cloud kernel.
    #[arg(long, value_enum, default_value = "cloud")]
    kernel_flavour: Flavour,
    /// Leave out the root file system of homes: a smaller release, for a box that offers none.
    #[arg(long, conflicts_with_all = ["home_rootfs", "home_extra"])]
    no_home: bool,
    #[command(flatten)]
    home: HomeContents,
    #[command(flatten)]
    packages: PackageArgs,
}

/// The roster for boots without network.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct BakedRoster {
    /// A roster.json made earlier.
    #[arg(long)]
    baked_roster: Option<PathBuf>,
    /// A users.nix, evaluated now by access-manager.
    #[arg(long)]
    users: Option<PathBuf>,
}

#[derive(Args)]
struct ServeArgs {
    /// The release.
    #[arg(long)]
    dir: PathBuf,
    /// Address and port; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8480")]
    listen: std::net::SocketAddr,
}

#[derive(Args)]
struct TryArgs {
    /// The release.
    #[arg(long, required_unless_present = "stop")]
    dir: Option<PathBuf>,
    /// Folder for logs and for what `--stop` needs.
    #[arg(long, default_value = "target/try")]
    state: PathBuf,
    /// The box's memory in MiB: system, store and builds all live in it.
    #[arg(long, default_value_t = 6144)]
    memory: u32,
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Port on loopback that leads to the box's ssh.
    #[arg(long, default_value_t = 2222)]
    ssh_port: u16,
    /// `auto` tries a kernel on hardware KVM and falls back to software.
    #[arg(long, value_enum, default_value = "auto")]
    accel: accel::Choice,
    /// A boot script served elsewhere, as the box sees it, e.g. http://10.0.2.2:8480/boot.ipxe.
    #[arg(long)]
    url: Option<String>,
    /// Address of the roster's repository, in place of the one in the image (10.0.2.2 is this machine's loopback).
    #[arg(long)]
    roster: Option<String>,
    /// Branch of the roster's repository.
    #[arg(long)]
    roster_branch: Option<String>,
    /// A further systemd credential for the box. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = credential)]
    credential: Vec<(String, String)>,
    /// Raw disk image for the box; one with a file system labelled `persist` keeps its identity. May be repeated.
    #[arg(long)]
    disk: Vec<PathBuf>,
    /// Seconds to wait for ssh.
    #[arg(long, default_value_t = 300)]
    wait: u64,
    /// Return once ssh answers and leave the box running.
    #[arg(long)]
    daemonize: bool,
    /// End the box of `--state`.
    #[arg(long)]
    stop: bool,
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
        Verb::Home(args) => make_home(args),
        Verb::Build(args) => make_release(*args),
        Verb::Fetch(args) => fetch_files(args),
        Verb::Tree(args) => make_tree(args),
        Verb::Serve(args) => serve_release(args),
        Verb::Try(args) => try_release(args),
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
        let mut archive = packages.open(archive::SUITE, Kind::Packages)?;
        KernelPackage::fetch(&mut archive, &packages.cache, Flavour::Cloud)?
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

fn make_home(args: HomeArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    let packages = &args.packages;
    let mut archive = packages.open(archive::SUITE, Kind::Packages)?;
    let made = args.contents.make(&mut archive, &packages.cache)?;
    let size = home::write(&made, &args.out)?;
    println!(
        "{}: {} in {:.1} s, {} packages, {:.1} MB of {:.1} MB before compression",
        args.out.join(home::FILE_NAME).display(),
        if made.made { "built" } else { "nothing changed" },
        started.elapsed().as_secs_f32(),
        made.packages.len(),
        size as f64 / 1e6,
        made.unpacked as f64 / 1e6
    );
    Ok(())
}

fn make_release(args: BuildArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    // Checked before the long steps, so that a missing build is noticed at once.
    for (path, hint) in [
        (&args.agent, "cargo build --release -p builder-agent"),
        (&args.access_manager, "cargo build --release -p access-manager"),
        (&args.guest, guest::GUEST_HINT),
        (&args.busybox, guest::BUSYBOX_HINT),
    ] {
        if let Err(error) = std::fs::File::open(path) {
            return Err(format!("cannot open the binary {}: {error}\nhint:  {hint}", path.display()).into());
        }
    }
    let roster = match (&args.baked.baked_roster, &args.baked.users) {
        (Some(path), _) => roster::read(path)?,
        (None, Some(users)) => roster::evaluate(&args.access_manager, users, args.roster_host.as_deref())?,
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    let packages = &args.packages;
    let mut archive = packages.open(archive::SUITE, Kind::Packages)?;
    // Before the box's own base: a version that the mirror lacks is left out from then on, and `netboot-image home` must come to
    // the same packages.
    let home = match args.no_home {
        true => None,
        false => Some(args.home.make(&mut archive, &packages.cache)?),
    };
    let base = base::make(&mut archive, &packages.cache, &base::Recipe::of_the_box(&args.extra))?;
    let (commit, modified) = source_commit();
    let guest_kernel = KernelPackage::fetch(&mut archive, &packages.cache, Flavour::Cloud)?;
    let inputs = release::Inputs {
        kernel: match args.kernel_flavour {
            Flavour::Cloud => guest_kernel.clone(),
            other => KernelPackage::fetch(&mut archive, &packages.cache, other)?,
        },
        guest_kernel,
        agent: args.agent,
        access_manager: args.access_manager,
        guest: args.guest,
        busybox: args.busybox,
        home,
        rootfs: args.rootfs,
        roster,
        roster_repo: args.roster_repo,
        roster_branch: args.branch,
        roster_host: args.roster_host,
        commit,
        modified,
    };
    let (manifest, what) = match release::build(&base, &inputs, &args.out)? {
        release::Outcome::Built(manifest) => (manifest, "built"),
        release::Outcome::UpToDate(manifest) => (manifest, "up to date"),
    };
    println!(
        "{}: {what} in {:.1} s, kernel {}",
        args.out.display(),
        started.elapsed().as_secs_f32(),
        manifest.kernel_version
    );
    for (name, entry) in &manifest.files {
        println!("  {:>12} bytes  {}  {name}", entry.size, &entry.sha256[..16]);
    }
    Ok(())
}

fn fetch_files(args: FetchArgs) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.out)
        .map_err(|error| format!("cannot make {}: {error}", args.out.display()))?;
    if !args.debs.is_empty() {
        fetch::debs(&mut args.packages.open(&args.suite, Kind::Packages)?, &args.debs, &args.out)?;
    }
    if !args.sources.is_empty() {
        fetch::sources(&mut args.packages.open(&args.suite, Kind::Sources)?, &args.sources, &args.out)?;
    }
    Ok(())
}

fn make_tree(args: TreeArgs) -> Result<(), Failure> {
    let mut archive = args.packages.open(&args.suite, Kind::Packages)?;
    let count = tree::make(&mut archive, &args.names, &args.out)?;
    println!("{}: {count} packages of {}", args.out.display(), args.suite);
    Ok(())
}

/// The commit of the sources in the current folder, and whether tracked files have changes.
fn source_commit() -> (Option<String>, bool) {
    let git =
        |args: &[&str]| tool::output(std::process::Command::new("git").args(args), "ask git for the commit");
    match git(&["rev-parse", "HEAD"]) {
        Ok(commit) => {
            let changes = git(&["status", "--porcelain", "--untracked-files=no"]).unwrap_or_default();
            (Some(String::from_utf8_lossy(&commit).trim().to_owned()), !changes.is_empty())
        }
        Err(error) => {
            tracing::warn!(%error, "building outside of a git checkout: the release will name no commit");
            (None, false)
        }
    }
}

fn serve_release(args: ServeArgs) -> Result<(), Failure> {
    let release = manifest::open(&args.dir)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(args.listen)
            .await
            .map_err(|error| format!("cannot listen on {}: {error}\nhint:  choose another with --listen", args.listen))?;
        let address = listener.local_addr()?;
        tracing::info!(release = %args.dir.display(), url = %format!("http://{address}/boot.ipxe"), "serving");
        serve::run(listener, release).await?;
        Ok(())
    })
}

fn credential(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("there is no `=` between name and value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn try_release(args: TryArgs) -> Result<(), Failure> {
    if args.stop {
        let was = if try_box::stop(&args.state) { "the box is off" } else { "no box was running" };
        println!("{was}");
        return Ok(());
    }
    let credentials = [("barnraiser.roster", args.roster), ("barnraiser.roster-branch", args.roster_branch)];
    try_box::run(&try_box::Options {
        dir: args.dir.expect("clap asks for it unless --stop is given"),
        state: args.state,
        memory_mib: args.memory,
        cpus: args.cpus,
        ssh_port: args.ssh_port,
        accel: args.accel,
        url: args.url,
        disks: args.disk,
        credentials: credentials
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .chain(args.credential)
            .collect(),
        patience: std::time::Duration::from_secs(args.wait),
        daemonize: args.daemonize,
    })?;
    Ok(())
}
