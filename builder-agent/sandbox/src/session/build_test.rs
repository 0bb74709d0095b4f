//! A fake guest on a socket pair sends everything that a guest must not send.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use std::io::Write;

use guest::etc::CERTIFICATES;
use guest::protocol::{Exit, ExitStatus, Failure, FailureKind, Hello, Tag, VERSION, header, json_frame};
use proptest::prelude::*;
use rustix::event::{PollFd, poll};

use super::super::conversation::Patience;
use super::*;
use crate::backend::Inputs;
use crate::job::{Limits, OutputSink};
use crate::paused::PausedMachine;
use crate::usage::Usage;

/// Ends a test that hangs; no working test takes nearly as long.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

const PATIENT: Patience = Patience { hello: LONG, stall: LONG, start: LONG, outputs: LONG };

/// Name to bytes, and whether the sink was finished.
type Outputs = BTreeMap<String, (Vec<u8>, bool)>;

#[derive(Default, Clone)]
struct Seen {
    log: Arc<Mutex<Vec<u8>>>,
    outputs: Arc<Mutex<Outputs>>,
    refuse: bool,
}

struct Sink(Seen, String);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.outputs.lock().unwrap().entry(self.1.clone()).or_default().0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutputSink for Sink {
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.outputs.lock().unwrap().entry(self.1.clone()).or_default().1 = true;
        Ok(())
    }
}

impl Host for Seen {
    fn log(&mut self, bytes: &[u8]) {
        self.log.lock().unwrap().extend_from_slice(bytes);
    }

    fn output(&mut self, name: &str) -> io::Result<Box<dyn OutputSink>> {
        if self.refuse {
            return Err(io::Error::other("disk full"));
        }
        Ok(Box::new(Sink(self.clone(), name.into())))
    }
}

/// A machine with this stream.
fn machine(guest: UnixStream) -> InMachine {
    InMachine { streams: Streams { guest }, network: None, started: SHORT }
}

struct Silent;

impl FarEnd for Silent {
    fn last_words(&mut self) -> String {
        "last line of the console".into()
    }

    fn ran_out_of_memory(&self, last_words: &str) -> bool {
        assert!(last_words.starts_with("last line of the console"), "{last_words}");
        true
    }

    fn end(&mut self) -> Usage {
        Usage { cpu: SHORT, peak_memory: None, vmm_overhead: Some(3), ..Usage::default() }
    }
}

fn job() -> Job {
    Job {
        id: "test".into(),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec![],
        env: BTreeMap::new(),
        files: vec![("big".into(), vec![7; 600_000]), ("empty".into(), vec![])],
        etc: Vec::new(),
        outputs: [("out".to_owned(), "/nix/store/x-out".to_owned())].into(),
        inputs: Inputs::Trees(vec![]),
        random_order: false,
        network: false,
        limits: Limits {
            vcpus: 1,
            memory_mib: 64,
            wall: None,
            silent: None,
            log_bytes: 1000,
            output_bytes: 1000,
            processes: 10,
        },
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

    /// Reads the job and its files; returns both.
    fn read_job(&mut self) -> (protocol::Job, Vec<u8>) {
        let (mut job, mut contents) = (None::<protocol::Job>, Vec::new());
        loop {
            if let Some(job) = &job
                && contents.len() as u64 == job.files.iter().chain(&job.etc).map(|f| f.1).sum::<u64>()
            {
                return (job.clone(), contents);
            }
            let mut head = [0; 5];
            self.0.read_exact(&mut head).unwrap();
            let (tag, length) = protocol::parse_header(head).unwrap();
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).unwrap();
            match tag {
                Tag::Job => job = Some(serde_json::from_slice(&body).unwrap()),
                Tag::FileData => contents.extend(body),
                other => panic!("{other:?}"),
            }
        }
    }

    fn started(&mut self) {
        self.hello();
        self.read_job();
        self.send(Tag::Started, &[]);
    }

    fn exit(&mut self, exit: Exit) {
        self.raw(&json_frame(Tag::Exit, &exit).unwrap());
    }

    fn exited(&mut self, code: i32) {
        self.exit(Exit {
            status: ExitStatus::Exited(code),
            out_of_memory: false,
            process_limit: false,
            peak_memory: Some(12345),
        });
    }

    fn wait_for_hangup(&mut self) {
        let mut buffer = [0; 4096];
        while matches!(self.0.read(&mut buffer), Ok(n) if n > 0) {}
    }
}

struct Case {
    patience: Patience,
    job: Job,
    network: Option<protocol::Network>,
    seen: Seen,
    cancel: Cancel,
}

fn case() -> Case {
    Case { patience: PATIENT, job: job(), network: None, seen: Seen::default(), cancel: Cancel::new() }
}

impl Case {
    fn run(&self, far: impl FnOnce(&mut Fake) + Send + 'static) -> Result<Finished, SandboxError> {
        let (near, far_stream) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || far(&mut Fake(far_stream)));
        let mut host = self.seen.clone();
        let conversation = Conversation::new(self.patience, &self.job, self.network.clone(), &mut host);
        let run = drive(conversation, near, &[], &self.cancel, &mut Silent);
        thread.join().unwrap();
        run.result
    }

    /// Runs the whole session, as with a backend's machine.
    fn run_in(&self, far: impl FnOnce(&mut Fake) + Send + 'static) -> Run {
        let (guest, far_stream) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || far(&mut Fake(far_stream)));
        let mut host = self.seen.clone();
        let run = run_in(&mut Silent, machine(guest), &self.job, &mut host, &self.cancel);
        thread.join().unwrap();
        run
    }
}

fn protocol_error(result: Result<Finished, SandboxError>) -> String {
    match result {
        Err(SandboxError::GuestProtocol { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_guest_is_driven_to_its_end() {
    let case = case();
    let finished = case
        .run(|fake| {
            fake.hello();
            let (job, contents) = fake.read_job();
            assert_eq!(job.files, [("big".to_owned(), 600_000), ("empty".to_owned(), 0)]);
            assert!(job.network.is_none() && job.etc.is_empty());
            assert!(contents.iter().all(|b| *b == 7));
            fake.send(Tag::Started, &[]);
            fake.send(Tag::Log, b"hello\n");
            fake.exited(0);
            fake.send(Tag::OutputBegin, b"out");
            fake.send(Tag::OutputData, b"na");
            fake.send(Tag::OutputData, b"r");
            fake.send(Tag::OutputEnd, &[]);
            fake.send(Tag::Done, &[]);
        })
        .unwrap();
    assert_eq!(finished.status, BuilderStatus::Exited(0));
    assert_eq!(finished.kernel, "6.12.0-test");
    assert_eq!(*case.seen.log.lock().unwrap(), b"hello\n");
    assert_eq!(case.seen.outputs.lock().unwrap()["out"], (b"nar".to_vec(), true));
}

#[test]
fn a_run_reports_its_phases_and_what_it_used() {
    let run = case().run_in(|fake| {
        fake.started();
        fake.send(Tag::Log, &[b'x'; 500]);
        fake.exited(1);
        fake.send(Tag::Done, &[]);
    });
    assert_eq!(run.result.unwrap().status, BuilderStatus::Exited(1));
    let names: Vec<_> = run.phases.named().map(|(name, _)| name).collect();
    let all = ["machine started", "guest ready", "job sent", "builder started", "builder", "outputs"];
    assert_eq!((names, run.phases.machine_started), (all.to_vec(), Some(SHORT)));
    // For values that the host did not measure, the guest's report counts.
    let Usage { cpu, peak_memory, vmm_overhead, bytes_in, bytes_out, network } = run.usage;
    assert_eq!(network, 0);
    assert_eq!((cpu, peak_memory, vmm_overhead), (SHORT, Some(12345), Some(3)));
    assert!((600_000..610_000).contains(&bytes_in), "{bytes_in}");
    assert!((500..1000).contains(&bytes_out), "{bytes_out}");
}

#[test]
fn a_run_that_failed_reports_what_it_used_and_the_phases_it_came_to() {
    let run = case().run_in(|fake| fake.hello());
    // The machine reports that it had no memory left; the stream only ended.
    assert!(matches!(run.result, Err(SandboxError::OutOfMemory { mib: 64 })), "{:?}", run.result);
    let names: Vec<_> = run.phases.named().map(|(name, _)| name).collect();
    assert_eq!(names, ["machine started", "guest ready"]);
    assert_eq!((run.usage.cpu, run.usage.peak_memory), (SHORT, None));
    assert!(run.usage.bytes_out > 0);
}

#[test]
fn nonsense_instead_of_a_hello_is_refused() {
    let why = protocol_error(case().run(|fake| fake.raw(b"GET / HTTP/1.1\r\n\r\n")));
    assert!(why.contains("unknown frame tag"), "{why}");
}

#[test]
fn an_oversized_frame_is_refused_before_its_body_comes() {
    let why = protocol_error(case().run(|fake| {
        fake.started();
        fake.raw(&[Tag::Log as u8, 0xff, 0xff, 0xff, 0xff]);
        // No byte of the body: the host must not wait for it.
        fake.wait_for_hangup();
    }));
    assert!(why.contains("over the limit"), "{why}");
}

#[test]
fn an_output_before_the_exit_is_refused() {
    let why = protocol_error(case().run(|fake| {
        fake.started();
        fake.send(Tag::OutputBegin, b"out");
    }));
    assert!(why.contains("while the builder ran"), "{why}");
}

#[test]
fn an_output_of_a_failed_builder_never_reaches_a_sink() {
    let case = case();
    protocol_error(case.run(|fake| {
        fake.started();
        fake.exited(1);
        fake.send(Tag::OutputBegin, b"out");
    }));
    assert!(case.seen.outputs.lock().unwrap().is_empty());
}

#[test]
fn an_output_that_nobody_asked_for_never_reaches_a_sink() {
    let case = case();
    let why = protocol_error(case.run(|fake| {
        fake.started();
        fake.exited(0);
        fake.send(Tag::OutputBegin, b"dev");
    }));
    assert!(why.contains("\"dev\""), "{why}");
    assert!(case.seen.outputs.lock().unwrap().is_empty());
}

#[test]
fn a_builder_started_before_its_job_was_read_is_refused() {
    let why = protocol_error(case().run(|fake| {
        fake.hello();
        fake.send(Tag::Started, &[]);
        fake.wait_for_hangup();
    }));
    assert!(why.contains("before the whole job was read"), "{why}");
}

#[test]
fn a_guest_that_hangs_up_is_dead_and_its_console_is_quoted() {
    for frames in 0..4 {
        let result = case().run(move |fake| {
            if frames > 0 {
                fake.started();
            }
            if frames > 1 {
                fake.exited(0);
            }
            if frames > 2 {
                fake.raw(&[Tag::OutputBegin as u8, 3, 0, 0, 0, b'o']);
            }
        });
        let Err(SandboxError::GuestDied { console }) = result else { panic!("{frames}: {result:?}") };
        assert!(console.starts_with("last line of the console"), "{console}");
        assert_eq!(console.contains("inside a frame"), frames > 2, "{console}");
    }
}

#[test]
fn a_half_output_is_never_finished() {
    let case = case();
    let result = case.run(|fake| {
        fake.started();
        fake.exited(0);
        fake.send(Tag::OutputBegin, b"out");
        fake.send(Tag::OutputData, b"half");
    });
    assert!(matches!(result, Err(SandboxError::GuestDied { .. })), "{result:?}");
    assert_eq!(case.seen.outputs.lock().unwrap()["out"], (b"half".to_vec(), false));
}

#[test]
fn a_guest_that_never_says_hello_is_given_up() {
    let mut case = case();
    case.patience.hello = SHORT;
    let result = case.run(Fake::wait_for_hangup);
    assert!(
        matches!(&result, Err(SandboxError::GuestDied { console }) if console.contains("hello in time")),
        "{result:?}"
    );
}

#[test]
fn a_guest_that_does_not_read_its_job_is_given_up() {
    let mut case = case();
    case.patience.stall = SHORT;
    // More than any socket buffer.
    case.job.files[0].1 = vec![0; 16 << 20];
    let result = case.run(|fake| {
        fake.hello();
        // Stays connected without reading, until the host hangs up.
        poll(&mut [PollFd::new(&fake.0, PollFlags::empty())], None).unwrap();
    });
    assert!(
        matches!(&result, Err(SandboxError::GuestDied { console }) if console.contains("reading its job")),
        "{result:?}"
    );
}

#[test]
fn a_job_with_a_network_brings_its_addresses_and_its_files_of_etc_after_those_of_the_build() {
    let mut case = case();
    assert!(!case.job.machine().network);
    case.job.network = true;
    assert!(case.job.machine().network);
    let ipv4 =
        protocol::Subnet { address: [192, 0, 2, 2].into(), prefix: 24, gateway: [192, 0, 2, 1].into() };
    let [address, gateway] = ["fd52:5500::2", "fe80::1"].map(|address| address.parse().unwrap());
    let ipv6 = protocol::Subnet { address, prefix: 64, gateway };
    let nameservers = vec![[192, 0, 2, 53].into()];
    let network =
        protocol::Network { ipv4: Some(ipv4), ipv6: Some(ipv6), nameservers, ports: (32768, 60999) };
    case.network = Some(network.clone());
    case.job.etc = vec![(CERTIFICATES.into(), vec![8; 300_000]), ("machine-id".into(), vec![9])];
    let result = case.run(move |fake| {
        fake.hello();
        let (job, contents) = fake.read_job();
        assert_eq!(job.etc, [(CERTIFICATES.to_owned(), 300_000), ("machine-id".to_owned(), 1)]);
        let lengths: Vec<_> = contents.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
        assert_eq!(lengths, [(7, 600_000), (8, 300_000), (9, 1)]);
        assert_eq!(job.network.as_ref(), Some(&network));
        assert_eq!(network.ipv4.unwrap().address.to_string(), "192.0.2.2");
        assert_eq!(network.ipv6.unwrap().gateway.to_string(), "fe80::1");
        fake.send(Tag::Started, &[]);
        fake.exited(1);
        fake.send(Tag::Done, &[]);
    });
    assert_eq!(result.unwrap().status, BuilderStatus::Exited(1));
}

#[test]
fn a_guest_that_does_not_start_the_builder_is_given_up() {
    let mut case = case();
    case.patience.start = SHORT;
    let result = case.run(|fake| {
        fake.hello();
        fake.read_job();
        fake.wait_for_hangup();
    });
    assert!(
        matches!(&result, Err(SandboxError::GuestDied { console }) if console.contains("start the builder")),
        "{result:?}"
    );
}

#[test]
fn a_guest_that_stalls_inside_an_output_is_given_up() {
    let mut case = case();
    case.patience.stall = SHORT;
    let result = case.run(|fake| {
        fake.started();
        fake.exited(0);
        fake.send(Tag::OutputBegin, b"out");
        fake.wait_for_hangup();
    });
    assert!(
        matches!(&result, Err(SandboxError::GuestDied { console }) if console.contains("inside an output")),
        "{result:?}"
    );
}

#[test]
fn a_guest_that_trickles_its_output_is_given_up() {
    let mut case = case();
    case.patience.outputs = SHORT;
    let result = case.run(|fake| {
        fake.started();
        fake.exited(0);
        fake.send(Tag::OutputBegin, b"out");
        let mut empty = header(Tag::OutputData, 0).to_vec();
        while fake.0.write_all(&empty).is_ok() {
            empty.truncate(5);
        }
    });
    assert!(
        matches!(&result, Err(SandboxError::GuestDied { console }) if console.contains("too long")),
        "{result:?}"
    );
}

#[test]
fn the_wall_limit_counts_while_the_guest_floods_us() {
    let mut case = case();
    case.job.limits.wall = Some(SHORT);
    case.job.limits.log_bytes = u64::MAX;
    let result = case.run(|fake| {
        fake.started();
        while fake.0.write_all(&header(Tag::Log, 0)).is_ok() {}
    });
    assert!(matches!(result, Err(SandboxError::Timeout { after }) if after == SHORT), "{result:?}");
}

#[test]
fn empty_log_frames_are_silence() {
    let mut case = case();
    case.job.limits.silent = Some(SHORT);
    let result = case.run(|fake| {
        fake.started();
        while fake.0.write_all(&header(Tag::Log, 0)).is_ok() {}
    });
    assert!(matches!(result, Err(SandboxError::Silent { after }) if after == SHORT), "{result:?}");
}

#[test]
fn a_log_over_its_limit_ends_the_build_and_what_fits_is_kept() {
    let case = case();
    let result = case.run(|fake| {
        fake.started();
        fake.send(Tag::Log, &[b'x'; 999]);
        fake.send(Tag::Log, &[b'y'; 999]);
    });
    assert!(matches!(result, Err(SandboxError::LogLimit { limit: 1000 })), "{result:?}");
    assert_eq!(case.seen.log.lock().unwrap().len(), 1000);
}

#[test]
fn a_log_is_not_cut_inside_a_character_at_its_limit() {
    let case = case();
    let result = case.run(|fake| {
        fake.started();
        fake.send(Tag::Log, format!("x{}", "\u{e9}".repeat(700)).as_bytes());
    });
    assert!(matches!(result, Err(SandboxError::LogLimit { limit: 1000 })), "{result:?}");
    let log = String::from_utf8(case.seen.log.lock().unwrap().clone()).unwrap();
    assert_eq!(log.len(), 999);
}

#[test]
fn outputs_over_their_limit_end_the_build() {
    let case = case();
    let result = case.run(|fake| {
        fake.started();
        fake.exited(0);
        fake.send(Tag::OutputBegin, b"out");
        fake.send(Tag::OutputData, &[0; 1000]);
        fake.send(Tag::OutputData, &[0; 1]);
    });
    assert!(matches!(result, Err(SandboxError::OutputLimit { limit: 1000 })), "{result:?}");
    assert_eq!(case.seen.outputs.lock().unwrap()["out"], (vec![0; 1000], false));
}

#[test]
fn a_sink_that_refuses_is_the_boxs_problem() {
    let mut case = case();
    case.seen.refuse = true;
    let error = case
        .run(|fake| {
            fake.started();
            fake.exited(0);
            fake.send(Tag::OutputBegin, b"out");
        })
        .unwrap_err();
    assert!(matches!(&error, SandboxError::Sink { name, .. } if name == "out"), "{error:?}");
    assert!(!error.is_builders_fault());
}

#[test]
fn a_cancel_wakes_a_session_that_waits() {
    let case = case();
    let cancel = case.cancel.clone();
    let result = case.run(move |fake| {
        fake.started();
        thread::sleep(SHORT);
        cancel.cancel();
        fake.wait_for_hangup();
    });
    assert!(matches!(result, Err(SandboxError::Cancelled)), "{result:?}");
}

#[test]
fn a_cancel_before_the_start_is_seen() {
    let case = case();
    case.cancel.cancel();
    let result = case.run(Fake::wait_for_hangup);
    assert!(matches!(result, Err(SandboxError::Cancelled)), "{result:?}");
}

#[test]
fn claims_of_an_exit_only_explain_a_failure() {
    let claim = |status, out_of_memory, process_limit| Exit {
        status,
        out_of_memory,
        process_limit,
        peak_memory: None,
    };
    let run = |exit: Exit| {
        let mut case = case();
        case.job.outputs.clear();
        case.run(move |fake| {
            fake.started();
            fake.exit(exit);
            fake.send(Tag::Done, &[]);
        })
    };
    let killed = ExitStatus::Signalled(9);
    assert!(matches!(run(claim(killed, true, false)), Err(SandboxError::OutOfMemory { mib: 64 })));
    assert!(matches!(run(claim(killed, false, true)), Err(SandboxError::ProcessLimit { limit: 10 })));
    assert!(matches!(run(claim(killed, false, false)), Ok(f) if f.status == BuilderStatus::Signalled(9)));
    assert!(
        matches!(run(claim(ExitStatus::Exited(0), true, true)), Ok(f) if f.status == BuilderStatus::Exited(0))
    );
}

#[test]
fn failures_keep_their_kind() {
    for (kind, is_fault) in [
        (FailureKind::OutputMissing { name: "out".into() }, true),
        (FailureKind::OutputInvalid { name: "out".into() }, true),
        (FailureKind::CannotStart, true),
        (FailureKind::Sandbox, false),
    ] {
        let failure = Failure { kind: kind.clone(), text: "because".into() };
        let error = case()
            .run(move |fake| {
                fake.hello();
                fake.read_job();
                fake.raw(&json_frame(Tag::Failed, &failure).unwrap());
            })
            .unwrap_err();
        assert_eq!(error.is_builders_fault(), is_fault, "{kind:?}: {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_end_a_session_with_an_error(
        begun in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        let case = case();
        let result = case.run(move |fake| {
            if begun {
                fake.started();
            }
            fake.raw(&bytes);
        });
        let refused = matches!(
            result,
            Err(SandboxError::GuestProtocol { .. }
                | SandboxError::GuestDied { .. }
                | SandboxError::LogLimit { .. })
        );
        prop_assert!(refused, "{:?}", result);
    }
}

/// A machine that can be passed on.
struct Portable;

impl FarEnd for Portable {
    fn last_words(&mut self) -> String {
        String::new()
    }

    fn written_down(&self) -> Option<PausedMachine> {
        let scratch = ("/scratch".into(), 5);
        Some(PausedMachine::Namespace { pid: 3, init: Some(6), stderr: 4, scratch })
    }

    fn end(&mut self) -> Usage {
        Usage { cpu: SHORT, ..Usage::default() }
    }
}

impl Case {
    /// Starts the session in a machine that can be passed on. Returns it, our end of its stream, and the guest.
    fn start(&self) -> (thread::JoinHandle<Run>, UnixStream, Fake) {
        let (guest, far_stream) = UnixStream::pair().unwrap();
        let near = guest.try_clone().unwrap();
        let (job, mut host, cancel) = (self.job.clone(), self.seen.clone(), self.cancel.clone());
        let session = thread::spawn(move || run_in(&mut Portable, machine(guest), &job, &mut host, &cancel));
        (session, near, Fake(far_stream))
    }

    fn wait_until_paused(&self) {
        let deadline = Instant::now() + LONG;
        while !self.cancel.is_paused() {
            assert!(Instant::now() < deadline, "the session does not pause");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_paused_build_goes_on_elsewhere_from_the_middle_of_a_frame() {
    let case = case();
    let (session, near, mut fake) = case.start();
    fake.started();
    fake.send(Tag::Log, b"one\n");
    fake.raw(&header(Tag::Log, 4));
    fake.raw(b"tw");
    case.cancel.ask_to_pause();
    case.wait_until_paused();
    // What comes meanwhile stays in the stream.
    fake.raw(b"o\n");
    fake.exited(0);
    fake.send(Tag::OutputBegin, b"out");
    fake.send(Tag::OutputEnd, &[]);
    fake.send(Tag::Done, &[]);

    let paused = case.cancel.take_paused().unwrap();
    assert!(case.cancel.take_paused().is_none());
    let mut descriptors = paused.descriptors();
    descriptors.retain(|number| *number != paused.stream);
    assert_eq!(descriptors, [4, 5, 6]);
    let json = serde_json::to_string(&paused).unwrap();
    let Paused { received, session: written, .. } = serde_json::from_str(&json).unwrap();
    let mut host = case.seen.clone();
    let run = go_on_in(&mut Portable, near, &received.0, &written, &mut host, &Cancel::new());
    assert_eq!(run.result.unwrap().status, BuilderStatus::Exited(0));
    assert_eq!(*case.seen.log.lock().unwrap(), b"one\ntwo\n");
    assert!(case.seen.outputs.lock().unwrap()["out"].1);
    // The measurements are those of the whole build.
    assert_eq!(run.phases.named().count(), 6);
    assert!(run.usage.bytes_in >= 600_000 && run.usage.peak_memory == Some(12345), "{:?}", run.usage);
    assert!(!session.is_finished(), "it waits for ever, whoever has taken over");
}

#[test]
fn a_session_pauses_only_while_its_builder_runs_and_the_pause_is_no_silence() {
    let mut case = case();
    case.job.limits.silent = Some(SHORT * 5);
    let (session, _near, mut fake) = case.start();
    case.cancel.ask_to_pause();
    fake.hello();
    thread::sleep(SHORT);
    assert!(!case.cancel.is_paused());
    fake.read_job();
    fake.send(Tag::Started, &[]);
    case.wait_until_paused();
    thread::sleep(SHORT * 8);
    case.cancel.go_on();
    fake.send(Tag::Log, b"x");
    fake.exited(1);
    fake.send(Tag::Done, &[]);
    assert_eq!(session.join().unwrap().result.unwrap().status, BuilderStatus::Exited(1));
}

#[test]
fn a_paused_build_can_be_cancelled_until_somebody_has_taken_it_over() {
    let first = case();
    let (session, _near, mut fake) = first.start();
    fake.started();
    first.cancel.ask_to_pause();
    first.wait_until_paused();
    first.cancel.cancel();
    assert!(first.cancel.take_paused().is_none() && !first.cancel.is_paused());
    assert!(matches!(session.join().unwrap().result, Err(SandboxError::Cancelled)));

    let second = case();
    let (session, _near, mut fake) = second.start();
    fake.started();
    second.cancel.ask_to_pause();
    second.wait_until_paused();
    second.cancel.take_paused().unwrap();
    second.cancel.cancel();
    thread::sleep(SHORT);
    assert!(!session.is_finished());
    // Nobody has taken over in the end.
    second.cancel.go_on();
    assert!(matches!(session.join().unwrap().result, Err(SandboxError::Cancelled)));
}

/// A machine with a network, which ends when the flag is set.
struct Connected(Arc<AtomicBool>, UnixStream);

impl FarEnd for Connected {
    fn last_words(&mut self) -> String {
        String::new()
    }

    fn network_stream(&self) -> Option<BorrowedFd<'_>> {
        (!self.0.load(Ordering::SeqCst)).then(|| self.1.as_fd())
    }

    fn end(&mut self) -> Usage {
        Usage::default()
    }
}

impl Case {
    /// Runs the session in a machine whose network ends as the guest says.
    fn run_connected(
        &self,
        far: impl FnOnce(&mut Fake, &dyn Fn()) + Send + 'static,
    ) -> Result<Finished, SandboxError> {
        let (near, far_stream) = UnixStream::pair().unwrap();
        // Readable as soon as the other end is gone.
        let (network, guard) = UnixStream::pair().unwrap();
        let has_ended = Arc::new(AtomicBool::new(false));
        let flag = has_ended.clone();
        let thread = thread::spawn(move || {
            let end = || {
                flag.store(true, Ordering::SeqCst);
                guard.shutdown(std::net::Shutdown::Both).unwrap();
            };
            far(&mut Fake(far_stream), &end);
        });
        let run = run_in(
            &mut Connected(has_ended, network),
            machine(near),
            &self.job,
            &mut self.seen.clone(),
            &self.cancel,
        );
        thread.join().unwrap();
        run.result
    }
}

#[test]
fn a_builder_that_has_lost_its_network_is_not_told_to_have_failed() {
    // It fails at once, or would wait for ever.
    for fails in [true, false] {
        let result = case().run_connected(move |fake, end_network| {
            fake.started();
            end_network();
            if fails {
                fake.exited(1);
                fake.send(Tag::Done, &[]);
            }
            fake.wait_for_hangup();
        });
        assert!(matches!(result, Err(SandboxError::NetworkEnded)), "fails: {fails}, {result:?}");
    }
    // One whose machine ends with the network has another reason.
    let result = case().run_connected(|fake, end_network| {
        fake.started();
        end_network();
    });
    assert!(matches!(result, Err(SandboxError::GuestDied { .. })), "{result:?}");
    // And one that needs it no more has built.
    let result = case().run_connected(|fake, end_network| {
        fake.started();
        end_network();
        fake.exited(0);
        for (tag, body) in [
            (Tag::OutputBegin, &b"out"[..]),
            (Tag::OutputData, b"nar"),
            (Tag::OutputEnd, b""),
            (Tag::Done, b""),
        ] {
            fake.send(tag, body);
        }
    });
    assert!(matches!(result, Ok(Finished { status: BuilderStatus::Exited(0), .. })), "{result:?}");
}
