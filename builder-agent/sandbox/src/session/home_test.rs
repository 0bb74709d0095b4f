//! A fake guest on a socket pair sends everything that the guest of a home must not send.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use guest::etc::CERTIFICATES;
use guest::protocol::{
    Answer, Attach, Failure, FailureKind, Hello, MAX_TEXT, Open, Range, SSH_PORTS, VERSION, header,
    json_frame,
};
use proptest::prelude::*;

use super::*;
use crate::backend::{Segment, Streams};

/// Ends a test that hangs; no working test takes nearly as long.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

const PATIENT: Patience = Patience { hello: LONG, send: LONG, start: LONG, answer: LONG };

/// The machine around the guest. It says that its memory was all used if its last words are asked for.
struct Machine {
    is_out_of_memory: bool,
}

impl FarEnd for Machine {
    fn last_words(&mut self) -> String {
        "last line of the console".into()
    }

    fn ran_out_of_memory(&self, last_words: &str) -> bool {
        assert!(last_words.starts_with("last line of the console"), "{last_words}");
        self.is_out_of_memory
    }

    fn end(&mut self) -> Usage {
        Usage { cpu: SHORT, network: 7, ..Usage::default() }
    }
}

/// A machine into which something can be plugged; it keeps the other ends of its streams.
#[derive(Default, Clone)]
struct Plugs(Arc<Mutex<Plugged>>);

#[derive(Default)]
struct Plugged {
    images: u64,
    opened: Vec<(u32, UnixStream)>,
    busy: BTreeSet<u32>,
}

impl Plugs {
    fn ports(&self) -> Vec<u32> {
        self.0.lock().unwrap().opened.iter().map(|(port, _)| *port).collect()
    }

    /// The machine's end of the stream that was opened last.
    fn last(&self) -> UnixStream {
        self.0.lock().unwrap().opened.last().unwrap().1.try_clone().unwrap()
    }
}

impl Attachments for Plugs {
    fn add(&mut self, image: &Image) -> Result<u64, SandboxError> {
        if image.segments.is_empty() {
            return Err(SandboxError::Setup { why: "it is empty".into() });
        }
        let mut plugged = self.0.lock().unwrap();
        plugged.images += 1;
        Ok(plugged.images << 20)
    }

    fn open(&mut self, port: u32) -> Result<UnixStream, SandboxError> {
        let mut plugged = self.0.lock().unwrap();
        if plugged.busy.contains(&port) {
            return Err(SandboxError::Setup { why: format!("port {port} is busy") });
        }
        let (near, far) = UnixStream::pair().unwrap();
        plugged.opened.push((port, far));
        Ok(near)
    }
}

struct Nobody;

impl HomeHost for Nobody {
    fn connected(&mut self, event: Event) {
        panic!("{event:?}");
    }
}

fn job() -> HomeJob {
    HomeJob {
        id: "test".into(),
        user: "ada".into(),
        hostname: "ada-home".into(),
        vcpus: 1,
        memory_mib: 512,
        root: Image::default(),
        network: false,
        etc: vec![(CERTIFICATES.into(), vec![8; 300_000]), ("machine-id".into(), vec![9])],
        ssh_host_key: "private".into(),
        authorized_key: "public".into(),
        processes: 100,
        greeting: "Welcome.".into(),
    }
}

/// The guest's side of a conversation.
struct Fake(UnixStream);

impl Fake {
    fn raw(&mut self, bytes: &[u8]) {
        // The host may have hung up already; then the test checks the reason.
        let _ = self.0.write_all(bytes);
    }

    fn send(&mut self, tag: Tag, body: &[u8]) {
        self.raw(&header(tag, body.len()));
        self.raw(body);
    }

    fn hello(&mut self) {
        let hello = Hello {
            version: VERSION,
            kernel: "6.12.0-test".into(),
            init_ns: 1,
            ready_ns: 2,
            draw: Default::default(),
        };
        self.raw(&json_frame(Tag::Hello, &hello).unwrap());
    }

    /// The next frame; `None` if the host has hung up.
    fn frame(&mut self) -> Option<(Tag, Vec<u8>)> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).ok()?;
        let (tag, length) = protocol::parse_header(head).unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        Some((tag, body))
    }

    fn contents(&mut self, mut length: u64) -> Vec<u8> {
        let mut contents = Vec::new();
        while length > 0 {
            let (tag, body) = self.frame().unwrap();
            assert_eq!(tag, Tag::FileData);
            length -= body.len() as u64;
            contents.extend(body);
        }
        contents
    }

    fn read_home(&mut self) -> (protocol::Home, Vec<Vec<u8>>) {
        let (tag, body) = self.frame().unwrap();
        assert_eq!(tag, Tag::Home);
        let home: protocol::Home = serde_json::from_slice(&body).unwrap();
        let contents = home.etc.iter().map(|(_, length)| self.contents(*length)).collect();
        (home, contents)
    }

    fn ready(&mut self) {
        self.hello();
        self.read_home();
        self.send(Tag::Started, &[]);
    }

    fn attach(&mut self) -> Option<(Attach, Vec<Vec<u8>>)> {
        let (tag, body) = self.frame()?;
        assert_eq!(tag, Tag::Attach);
        let request: Attach = serde_json::from_slice(&body).unwrap();
        let contents = request.files.iter().map(|file| self.contents(file.size)).collect();
        Some((request, contents))
    }

    fn open(&mut self) -> Option<Open> {
        let (tag, body) = self.frame()?;
        assert_eq!(tag, Tag::Open);
        Some(serde_json::from_slice(&body).unwrap())
    }

    fn answer(&mut self, tag: Tag, number: u64, error: Option<&str>) {
        self.raw(&json_frame(tag, &Answer { number, error: error.map(str::to_owned) }).unwrap());
    }

    /// Grants all requests for connections until the host hangs up.
    fn grant_connections(&mut self) {
        while let Some(Open { number, .. }) = self.open() {
            self.answer(Tag::Opened, number, None);
        }
    }

    /// A byte at a time, which is no progress that counts.
    fn read_slowly(&mut self) {
        for _ in 0..100 {
            let _ = self.0.read(&mut [0]);
            thread::sleep(SHORT / 20);
        }
        self.wait_for_hangup();
    }

    fn wait_for_hangup(&mut self) {
        let mut buffer = [0; 4096];
        while matches!(self.0.read(&mut buffer), Ok(n) if n > 0) {}
    }
}

struct Case {
    patience: Patience,
    job: HomeJob,
    is_out_of_memory: bool,
    plugs: Plugs,
    cancel: Cancel,
}

fn case() -> Case {
    Case {
        patience: PATIENT,
        job: job(),
        is_out_of_memory: false,
        plugs: Plugs::default(),
        cancel: Cancel::new(),
    }
}

/// A home whose keeper runs in a thread.
struct Running {
    control: Control,
    keeper: JoinHandle<(HomeEnd, Usage)>,
    guest: JoinHandle<()>,
    cancel: Cancel,
}

impl Running {
    /// The end of the home, when it comes by itself.
    fn end(self) -> HomeEnd {
        let (end, _) = self.keeper.join().unwrap();
        self.guest.join().unwrap();
        assert!(matches!(self.control.connect(), Err(RequestError::Ended)));
        end
    }

    fn cancel(self) -> Usage {
        self.cancel.cancel();
        let (end, usage) = self.keeper.join().unwrap();
        assert!(matches!(end, HomeEnd::Cancelled), "{end:?}");
        self.guest.join().unwrap();
        usage
    }
}

impl Case {
    fn start(
        &self,
        far: impl FnOnce(&mut Fake) + Send + 'static,
    ) -> (Result<Home, SandboxError>, JoinHandle<()>) {
        let (near, far_stream) = UnixStream::pair().unwrap();
        let guest = thread::spawn(move || far(&mut Fake(far_stream)));
        let machine = Box::new(Machine { is_out_of_memory: self.is_out_of_memory });
        let plugs = Box::new(self.plugs.clone());
        let talk = Talk::new(near).unwrap();
        (start_in(machine, talk, None, plugs, &self.job, self.patience, &self.cancel), guest)
    }

    /// The error of a home that does not get ready.
    fn fail(&self, far: impl FnOnce(&mut Fake) + Send + 'static) -> SandboxError {
        let (home, guest) = self.start(far);
        let error = home.err().expect("the home is ready");
        guest.join().unwrap();
        error
    }

    /// A home that is ready. `far` goes on from there.
    fn run(&self, far: impl FnOnce(&mut Fake) + Send + 'static) -> Running {
        let (go, started) = channel();
        let (home, guest) = self.start(move |fake| {
            fake.ready();
            started.recv().unwrap();
            far(fake);
        });
        let Home { control, keeper } = home.unwrap();
        go.send(()).unwrap();
        let cancel = self.cancel.clone();
        let keeper = thread::spawn(move || keeper.run(&mut Nobody, &cancel));
        Running { control, keeper, guest, cancel: self.cancel.clone() }
    }
}

fn image() -> Image {
    let file = Arc::new(std::fs::File::open("/dev/null").unwrap());
    let segment = |len| Segment { file: file.clone(), offset: 0, len };
    Image { segments: vec![segment(4096), segment(8192)] }
}

fn small(name: &str, contents: &[u8]) -> SmallFile {
    SmallFile { name: name.into(), contents: contents.to_vec(), executable: false }
}

fn died_saying(error: &SandboxError, what: &str) -> bool {
    matches!(error, SandboxError::GuestDied { console } if console.contains(what) && console.starts_with("last line"))
}

#[test]
fn the_guest_learns_what_its_home_is_like_and_says_when_it_is_ready() {
    let (seen, learned) = channel();
    let (home, guest) = case().start(move |fake| {
        fake.hello();
        seen.send(fake.read_home()).unwrap();
        fake.send(Tag::Started, &[]);
        fake.wait_for_hangup();
    });
    let keeper = home.unwrap().keeper;
    let (home, files) = learned.recv().unwrap();
    assert_eq!((home.user.as_str(), home.hostname.as_str()), ("ada", "ada-home"));
    assert_eq!((home.ssh_host_key.as_str(), home.authorized_key.as_str()), ("private", "public"));
    assert_eq!((home.processes, home.greeting.as_str(), home.network), (100, "Welcome.", None));
    assert_eq!(home.etc, [(CERTIFICATES.to_owned(), 300_000), ("machine-id".to_owned(), 1)]);
    assert_eq!(files, [vec![8; 300_000], vec![9]]);
    // Dropping it ends the home.
    drop(keeper);
    guest.join().unwrap();
}

#[test]
fn a_guest_that_does_not_get_ready_is_given_up() {
    let mut hello = case();
    hello.patience.hello = SHORT;
    let error = hello.fail(Fake::wait_for_hangup);
    assert!(died_saying(&error, "did not say hello in time"), "{error:?}");

    let mut send = case();
    send.patience.send = SHORT;
    // More than any socket buffer.
    send.job.etc[0].1 = vec![0; 16 << 20];
    let error = send.fail(|fake| {
        fake.hello();
        fake.read_slowly();
    });
    assert!(died_saying(&error, "did not read the description"), "{error:?}");

    let mut start = case();
    start.patience.start = SHORT;
    let error = start.fail(|fake| {
        fake.hello();
        fake.read_home();
        fake.wait_for_hangup();
    });
    assert!(died_saying(&error, "not ready in time"), "{error:?}");
}

#[test]
fn a_home_that_is_ready_too_early_or_fails_is_no_home() {
    let error = case().fail(|fake| {
        fake.hello();
        fake.send(Tag::Started, &[]);
        fake.wait_for_hangup();
    });
    assert!(
        matches!(&error, SandboxError::GuestProtocol { why } if why.contains("before its description")),
        "{error:?}"
    );
    let error = case().fail(|fake| {
        fake.hello();
        fake.read_home();
        let failure = Failure { kind: FailureKind::Sandbox, text: "no disk\nappeared".into() };
        fake.raw(&json_frame(Tag::Failed, &failure).unwrap());
        fake.wait_for_hangup();
    });
    assert!(matches!(&error, SandboxError::Setup { why } if why.starts_with("no disk")), "{error:?}");
    let error = case().fail(Fake::hello);
    assert!(died_saying(&error, "it hung up"), "{error:?}");
    let error = case().fail(|fake| fake.raw(b"GET / HTTP/1.1\r\n\r\n"));
    assert!(matches!(&error, SandboxError::GuestProtocol { .. }), "{error:?}");
}

#[test]
fn a_start_can_be_cancelled() {
    let case = case();
    let cancel = case.cancel.clone();
    let error = case.fail(move |fake| {
        fake.hello();
        thread::sleep(SHORT);
        cancel.cancel();
        fake.wait_for_hangup();
    });
    assert!(matches!(error, SandboxError::Cancelled), "{error:?}");
}

#[test]
fn a_sandbox_without_homes_says_so() {
    struct Plain;
    impl Backend for Plain {
        fn name(&self) -> &'static str {
            "plain"
        }

        fn start(&self, machine: crate::Machine<'_>, _: &Cancel) -> Result<Started, SandboxError> {
            assert!(machine.home && matches!(machine.inputs, Inputs::Image(_)));
            let guest = UnixStream::pair().unwrap().0;
            let far_end = Box::new(Machine { is_out_of_memory: false });
            Ok(Started { far_end, streams: Streams { guest }, network: None, plugs: None })
        }
    }
    let error = start(&Plain, &job(), &Cancel::new()).err().unwrap().to_string();
    assert!(
        error.contains("the sandbox `plain` has no homes") && error.contains("sandbox.backend"),
        "{error}"
    );
}

#[test]
fn what_is_attached_reaches_the_guest_and_its_answer_whoever_asked() {
    let (seen, learned) = channel();
    let running = case().run(move |fake| {
        while let Some((request, contents)) = fake.attach() {
            // Its words are hostile.
            let error = (request.number == 1).then(|| format!("\x1b[2J{}\nfull", "x".repeat(2 * MAX_TEXT)));
            fake.answer(Tag::Attached, request.number, error.as_deref());
            seen.send((request, contents)).unwrap();
        }
    });
    let long = vec![7; 600_000];
    let files = [small("a.drv", b"Derive"), small("b", &long), small("empty", b"")];
    running.control.attach(Some(&image()), &["one".into(), "two".into()], &files).unwrap();
    let (request, contents) = learned.recv().unwrap();
    assert_eq!((request.number, request.image), (0, Some(Range { offset: 1 << 20, len: 12288 })));
    assert_eq!(request.paths, ["one", "two"]);
    let described: Vec<_> = request.files.iter().map(|file| (file.name.as_str(), file.size)).collect();
    assert_eq!(described, [("a.drv", 6), ("b", 600_000), ("empty", 0)]);
    assert_eq!(contents, [b"Derive".to_vec(), long, Vec::new()]);

    let refused = running.control.attach(None, &[], &[small("c", b"c")]).unwrap_err();
    let RequestError::Refused { why } = &refused else { panic!("{refused:?}") };
    assert!(why.len() <= MAX_TEXT + 6 && !why.contains(char::is_control), "{why}");
    assert_eq!(learned.recv().unwrap().0.image, None);
    // Nothing to show is shown at once, and what the machine refuses never reaches the guest.
    running.control.attach(Some(&image()), &[], &[]).unwrap();
    let error = running.control.attach(Some(&Image::default()), &["one".into()], &[]).unwrap_err();
    assert!(matches!(error, RequestError::Machine(SandboxError::Setup { .. })), "{error:?}");
    // Nor does what no frame can hold, and the home goes on.
    let error = running.control.attach(None, &vec!["x".repeat(200); 100_000], &[]).unwrap_err();
    assert!(matches!(error, RequestError::TooLarge { .. }), "{error:?}");
    running.control.attach(None, &[], &[small("d", b"d")]).unwrap();
    assert_eq!(learned.recv().unwrap().1, [b"d"]);
    let usage = running.cancel();
    assert!((900_000..910_000).contains(&usage.bytes_in), "{usage:?}");
    assert!((100..20_000).contains(&usage.bytes_out), "{usage:?}");
    assert_eq!((usage.cpu, usage.network), (SHORT, 7));
}

#[test]
fn requests_of_many_threads_are_made_one_by_one() {
    let running = case().run(|fake| {
        let mut before = None;
        while let Some(Open { number, .. }) = fake.open() {
            assert!(before.is_none_or(|before| before < number));
            // The next request comes after the answer.
            thread::sleep(SHORT / 20);
            fake.0.set_nonblocking(true).unwrap();
            let early = fake.0.read(&mut [0]);
            assert!(
                matches!(&early, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
                    || matches!(early, Ok(0))
            );
            fake.0.set_nonblocking(false).unwrap();
            fake.answer(Tag::Opened, number, None);
            before = Some(number);
        }
    });
    let asking: Vec<_> = (0..16)
        .map(|_| {
            let control = running.control.clone();
            thread::spawn(move || control.connect().unwrap().port)
        })
        .collect();
    let ports: Vec<_> = asking.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(ports.len(), 16);
    running.cancel();
}

#[test]
fn a_connection_has_a_port_until_it_is_dropped() {
    let case = case();
    let running = case.run(Fake::grant_connections);
    let mut connections: Vec<_> = SSH_PORTS.map(|_| running.control.connect().unwrap()).collect();
    assert_eq!(case.plugs.ports(), SSH_PORTS.collect::<Vec<_>>());
    let error = running.control.connect().err().unwrap();
    assert_eq!(error.to_string(), "the home has 64 connections, which is the most; close one");
    // The stream is the one that was plugged in.
    let mut sshd = case.plugs.last();
    sshd.write_all(b"SSH-2.0").unwrap();
    let mut banner = [0; 7];
    connections.last_mut().unwrap().stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-2.0");
    // It ends with its port, even if somebody still has it.
    let Connection { stream, port } = connections.pop().unwrap();
    drop(port);
    assert_eq!(sshd.read(&mut banner).unwrap(), 0);
    assert!(sshd.write_all(b"x").is_err());
    drop(stream);
    drop(connections.remove(0));
    // The one that was given back first is the next.
    let _connections = [running.control.connect().unwrap(), running.control.connect().unwrap()];
    assert_eq!(case.plugs.ports()[64..], [1088, 1025]);
    running.cancel();
}

#[test]
fn a_port_that_the_machine_has_not_let_go_of_is_left_alone() {
    let case = case();
    case.plugs.0.lock().unwrap().busy = [1025, 1026].into();
    let running = case.run(Fake::grant_connections);
    let connections = [running.control.connect().unwrap(), running.control.connect().unwrap()];
    assert_eq!(case.plugs.ports(), [1027, 1028]);
    drop(connections);
    // They are tried again, after all others. If the machine takes nothing more, it says why.
    case.plugs.0.lock().unwrap().busy = SSH_PORTS.collect();
    let error = running.control.connect().err().unwrap().to_string();
    assert!(error.contains("is busy"), "{error}");
    case.plugs.0.lock().unwrap().busy.clear();
    let _connection = running.control.connect().unwrap();
    running.cancel();
}

#[test]
fn a_connection_that_the_guest_refuses_gives_its_port_back() {
    let case = case();
    let running = case.run(|fake| {
        while let Some(Open { number, .. }) = fake.open() {
            fake.answer(Tag::Opened, number, Some("cannot start /usr/sbin/sshd"));
        }
    });
    for _ in 0..2 * SSH_PORTS.count() {
        let error = running.control.connect().err().unwrap().to_string();
        assert_eq!(error, "the home says: cannot start /usr/sbin/sshd");
        assert_eq!(case.plugs.last().read(&mut [0]).unwrap(), 0);
    }
    running.cancel();
}

#[test]
fn a_guest_that_does_not_answer_is_over_with_its_home() {
    let mut case = case();
    case.patience.answer = SHORT;
    // Silence, and a guest that takes its time to read.
    for slow in [false, true] {
        let running = case.run(move |fake| match slow {
            true => fake.read_slowly(),
            false => fake.wait_for_hangup(),
        });
        let waiting = running.control.clone();
        let waiting = thread::spawn(move || waiting.connect().err().unwrap());
        let error = running.control.attach(None, &[], &[small("a", &vec![0; 16 << 20])]).unwrap_err();
        assert!(matches!(error, RequestError::Ended), "{error:?}");
        assert!(matches!(waiting.join().unwrap(), RequestError::Ended));
        let HomeEnd::Failed(error) = running.end() else { panic!() };
        assert!(died_saying(&error, "did not answer a request in time"), "{error:?}");
    }
}

#[test]
fn what_nobody_asked_for_ends_the_home() {
    let long = |fake: &mut Fake| fake.raw(&[Tag::Attached as u8, 0xff, 0xff, 0xff, 0xff]);
    type Say = fn(&mut Fake);
    let cases: [(Say, &str); 6] = [
        (|fake| fake.answer(Tag::Attached, 0, None), "does not wait for it"),
        (|fake| fake.answer(Tag::Opened, 1, None), "does not wait for it"),
        (|fake| fake.send(Tag::Log, b"x"), "a Log frame came while the home ran"),
        (|fake| fake.send(Tag::Done, &[]), "a Done frame came while the home ran"),
        (Fake::hello, "a Hello frame came while the home ran"),
        (long, "over the limit"),
    ];
    for (say, why) in cases {
        // For as long as it is heard: a flood ends like a single frame.
        let running = case().run(move |fake| {
            while fake.0.write_all(&[]).is_ok() {
                say(fake);
                if fake.0.peer_is_gone() {
                    break;
                }
            }
        });
        let HomeEnd::Failed(SandboxError::GuestProtocol { why: said }) = running.end() else {
            panic!("{why}")
        };
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn an_answer_of_another_kind_or_before_the_end_of_the_request_ends_the_home() {
    let running = case().run(|fake| {
        let (request, _) = fake.attach().unwrap();
        fake.answer(Tag::Opened, request.number, None);
        fake.wait_for_hangup();
    });
    let error = running.control.attach(None, &[], &[small("a", b"a")]).unwrap_err();
    assert!(matches!(error, RequestError::Ended), "{error:?}");
    assert!(matches!(running.end(), HomeEnd::Failed(SandboxError::GuestProtocol { .. })));

    let running = case().run(|fake| {
        fake.frame().unwrap();
        fake.answer(Tag::Attached, 0, None);
        fake.wait_for_hangup();
    });
    // More than any socket buffer.
    let error = running.control.attach(None, &[], &[small("a", &vec![0; 16 << 20])]).unwrap_err();
    assert!(matches!(error, RequestError::Ended), "{error:?}");
    let HomeEnd::Failed(SandboxError::GuestProtocol { why }) = running.end() else { panic!() };
    assert_eq!(why, "a request was answered before it was read");
}

#[test]
fn a_guest_that_dies_ends_its_home_and_the_console_says_why() {
    let HomeEnd::Failed(error) = case().run(|_| {}).end() else { panic!() };
    assert!(died_saying(&error, "it hung up"), "{error:?}");
    let HomeEnd::Failed(error) = case().run(|fake| fake.raw(&[25, 9, 0])).end() else { panic!() };
    assert!(died_saying(&error, "inside a frame"), "{error:?}");
    let full = Case { is_out_of_memory: true, ..case() };
    let end = full.run(|_| {}).end();
    assert!(matches!(end, HomeEnd::Failed(SandboxError::OutOfMemory { mib: 512 })), "{end:?}");
    let failing = case().run(|fake| {
        let failure = Failure { kind: FailureKind::Sandbox, text: "the store is gone".into() };
        fake.raw(&json_frame(Tag::Failed, &failure).unwrap());
    });
    let end = failing.end();
    assert!(
        matches!(&end, HomeEnd::Failed(SandboxError::Setup { why }) if why == "the store is gone"),
        "{end:?}"
    );
}

#[test]
fn requests_that_wait_when_the_home_is_cancelled_fail() {
    let (reached, has_come): (_, Receiver<()>) = channel();
    let running = case().run(move |fake| {
        fake.open().unwrap();
        reached.send(()).unwrap();
        fake.wait_for_hangup();
    });
    let asking: Vec<_> = (0..3)
        .map(|_| {
            let control = running.control.clone();
            thread::spawn(move || control.connect().err().unwrap())
        })
        .collect();
    has_come.recv().unwrap();
    let began = Instant::now();
    running.cancel();
    for thread in asking {
        assert!(matches!(thread.join().unwrap(), RequestError::Ended));
    }
    assert!(began.elapsed() < LONG);
}

#[test]
fn a_request_to_a_home_whose_keeper_was_dropped_fails() {
    let (home, guest) = case().start(|fake| {
        fake.ready();
        fake.wait_for_hangup();
    });
    let Home { control, keeper } = home.unwrap();
    let waiting = control.clone();
    let waiting = thread::spawn(move || waiting.connect().err().unwrap());
    thread::sleep(SHORT);
    drop(keeper);
    assert!(matches!(waiting.join().unwrap(), RequestError::Ended));
    assert!(matches!(control.attach(None, &[], &[small("a", b"a")]), Err(RequestError::Ended)));
    guest.join().unwrap();
}

trait PeerIsGone {
    fn peer_is_gone(&self) -> bool;
}

impl PeerIsGone for UnixStream {
    fn peer_is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).unwrap() > 0
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_end_a_home_with_an_error(
        begun in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        let case = case();
        let error = if begun {
            match case.run(move |fake| fake.raw(&bytes)).end() {
                HomeEnd::Failed(error) => error,
                end => panic!("{end:?}"),
            }
        } else {
            case.fail(move |fake| fake.raw(&bytes))
        };
        let refused = matches!(error, SandboxError::GuestProtocol { .. } | SandboxError::GuestDied { .. });
        prop_assert!(refused, "{:?}", error);
    }
}
