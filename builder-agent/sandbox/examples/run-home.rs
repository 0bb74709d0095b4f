//! Starts a home, shows that its sshd answers and that a file can be attached, and ends it: for debugging and measuring,
//! without an agent.
//!
//! ```text
//! run-home --kernel FILE --initrd FILE --root home.erofs [--memory MIB] [--vcpus N] [--device pmem|blk] [--cmdline WORDS]
//!          [--image FILE.erofs --path NAME…]… [--listen ADDRESS:PORT]
//! ```
//! Kernel and initrd are made by `netboot-image guest`, the root by `netboot-image home`. Each `--image` is attached too, and
//! shows these names of its root in /nix/store. With `--listen`, each connection to that address gets an sshd, so that
//! `ssh -i KEY me@…` works (the key is printed), until standard input ends.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use sandbox::home::{self, Connection, Control, Home, HomeHost, HomeJob, SmallFile};
use sandbox::kvm::{ClosureDevice, KvmBackend, KvmConfig, jail};
use sandbox::{Cancel, Image, Segment, child_main_if_requested};

type Failure = Box<dyn std::error::Error>;

struct Printer;

impl HomeHost for Printer {
    fn connected(&mut self, event: egress::Event) {
        println!("network: {event:?}");
    }
}

fn main() -> Result<(), Failure> {
    child_main_if_requested();
    let (mut kernel, mut initrd, mut root, mut listen) = (None, None, None, None);
    let (mut memory_mib, mut vcpus, mut images) = (1024, 1, Vec::<(Image, Vec<String>)>::new());
    let (mut device, mut cmdline) = (ClosureDevice::Pmem, String::new());
    let mut args = std::env::args().skip(1);
    while let Some(argument) = args.next() {
        let mut value = || args.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--kernel" => kernel = Some(value()?),
            "--initrd" => initrd = Some(value()?),
            "--root" => root = Some(value()?),
            "--image" => images.push((whole(&value()?)?, Vec::new())),
            "--path" => images.last_mut().ok_or("--path belongs to an --image")?.1.push(value()?),
            "--listen" => listen = Some(value()?),
            "--memory" => memory_mib = value()?.parse()?,
            "--vcpus" => vcpus = value()?.parse()?,
            "--device" => device = if value()? == "blk" { ClosureDevice::Blk } else { ClosureDevice::Pmem },
            "--cmdline" => cmdline = value()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let mut config =
        KvmConfig::new(kernel.ok_or("--kernel FILE is needed")?, initrd.ok_or("--initrd FILE is needed")?);
    config.closure_device = device;
    config.extra_cmdline = cmdline;
    // The example runs on developers' machines, which may lack steps of the jail.
    config.allow_missing = jail::Step::ALL.to_vec();

    let keys = std::env::temp_dir().join(format!("run-home-{}", std::process::id()));
    fs::create_dir(&keys)?;
    let tried = key(&keys.join("host")).and_then(|()| key(&keys.join("member"))).and_then(|()| {
        let job = HomeJob {
            id: "run-home".into(),
            user: "me".into(),
            hostname: "home".into(),
            vcpus,
            memory_mib,
            root: whole(&root.ok_or("--root FILE is needed")?)?,
            network: false,
            etc: Vec::new(),
            ssh_host_key: fs::read_to_string(keys.join("host"))?,
            authorized_key: fs::read_to_string(keys.join("member.pub"))?,
            processes: 1000,
            greeting: "A home that was started by hand.\n".into(),
        };
        if listen.is_some() {
            println!("the member's key is {}", keys.join("member").display());
        }
        try_home(&KvmBackend::new(config), &job, &images, listen)
    });
    fs::remove_dir_all(&keys)?;
    tried
}

fn try_home(
    backend: &KvmBackend,
    job: &HomeJob,
    images: &[(Image, Vec<String>)],
    listen: Option<String>,
) -> Result<(), Failure> {
    let cancel = Cancel::new();
    let began = Instant::now();
    let Home { control, keeper } = home::start(backend, job, &cancel)?;
    println!("ready after {:?}", began.elapsed());
    let keeper = {
        let cancel = cancel.clone();
        thread::spawn(move || keeper.run(&mut Printer, &cancel))
    };
    let used = (|| -> Result<(), Failure> {
        let began = Instant::now();
        let mut banner = String::new();
        BufReader::new(control.connect()?.stream).read_line(&mut banner)?;
        println!("sshd says {:?} after {:?}", banner.trim_end(), began.elapsed());

        let name = "00000000000000000000000000000000-hello.drv";
        let file = SmallFile { name: name.into(), contents: b"Derive()\n".to_vec(), executable: false };
        let began = Instant::now();
        control.attach(None, &[], &[file])?;
        println!("/nix/store/{name} is there after {:?}", began.elapsed());
        let began = Instant::now();
        for (image, paths) in images {
            control.attach(Some(image), paths, &[])?;
        }
        println!("what {} images have is there after {:?}", images.len(), began.elapsed());
        if let Some(address) = listen {
            let listener = TcpListener::bind(&address)?;
            println!("waiting for connections to {address}");
            let control = control.clone();
            thread::spawn(move || serve(&listener, &control));
            io::copy(&mut io::stdin(), &mut io::sink())?;
        }
        Ok(())
    })();
    cancel.cancel();
    let (end, usage) = keeper.join().map_err(|_| "the keeper panicked")?;
    println!("{end:?}, used {usage:?}");
    used
}

/// A new key without a passphrase.
fn key(path: &Path) -> Result<(), Failure> {
    let status =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status()?;
    if status.success() { Ok(()) } else { Err(format!("ssh-keygen: {status}").into()) }
}

fn whole(path: &str) -> Result<Image, Failure> {
    let file = File::open(path)?;
    let len = file.metadata()?.len().next_multiple_of(4096);
    Ok(Image { segments: vec![Segment { file: Arc::new(file), offset: 0, len }] })
}

fn serve(listener: &TcpListener, control: &Control) {
    for client in listener.incoming().map_while(Result::ok) {
        let control = control.clone();
        thread::spawn(move || match control.connect() {
            Ok(connection) => relay(client, connection),
            Err(error) => println!("no connection: {error}"),
        });
    }
}

/// Until one of the sides hangs up.
fn relay(client: TcpStream, Connection { stream, port: _port }: Connection) {
    let (Ok(mut to_client), Ok(mut to_sshd)) = (client.try_clone(), stream.try_clone()) else { return };
    let (mut from_client, mut from_sshd) = (client, stream);
    let other = thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_sshd);
        let _ = to_sshd.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut from_sshd, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = other.join();
}
