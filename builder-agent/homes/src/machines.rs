//! The machines of homes, as this crate uses them: a micro-VM, or, in tests, something else with an sshd.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use egress::Event;
use sandbox::home::{self, Connection, HomeEnd, HomeHost, HomeJob, RequestError, SmallFile};
use sandbox::{Backend, Cancel, Image, SandboxError, Usage};

/// Starts machines of homes. Blocks until the machine answers.
pub trait Machines: Send + Sync {
    fn start(&self, job: &HomeJob, cancel: &Cancel) -> Result<Started, SandboxError>;
}

/// A machine that runs, once somebody calls [`Machine::run`].
pub struct Started {
    pub control: Arc<dyn Control>,
    pub machine: Box<dyn Machine>,
}

/// What is asked of a machine while it runs. Each call blocks until the machine has answered, or is late.
pub trait Control: Send + Sync {
    /// The agent's end of a stream to an sshd of its own, and what is to be kept until the stream is dropped.
    fn connect(&self) -> Result<(UnixStream, Box<dyn Send + Sync>), RequestError>;

    /// Shows paths in the store of the home: those of `image`, by their base names, and `files`.
    fn attach(
        &self,
        image: Option<&Image>,
        paths: &[String],
        files: &[SmallFile],
    ) -> Result<(), RequestError>;

    /// Shows an image as a whole, under this name in the root directory of the home.
    fn show_in_root(&self, image: &Image, name: &str) -> Result<(), RequestError>;
}

/// Reads the processor time that a machine has used until now; `None` when it is gone.
pub type CpuMeter = Box<dyn Fn() -> Option<Duration> + Send + Sync>;

/// Owns a machine.
pub trait Machine: Send {
    /// To charge for what it uses while it runs. Without, all of it is charged at its end.
    fn cpu_meter(&self) -> Option<CpuMeter> {
        None
    }

    /// Blocks until the machine is over: by itself, or because of `cancel`. Nothing of it is left then.
    fn run(self: Box<Self>, tell: &mut (dyn FnMut(Event) + Send), cancel: &Cancel) -> (HomeEnd, Usage);
}

/// Micro-VMs.
pub struct Micro(pub Arc<dyn Backend>);

impl Machines for Micro {
    fn start(&self, job: &HomeJob, cancel: &Cancel) -> Result<Started, SandboxError> {
        let home::Home { control, keeper } = home::start(&*self.0, job, cancel)?;
        Ok(Started { control: Arc::new(control), machine: Box::new(keeper) })
    }
}

impl Control for home::Control {
    fn connect(&self) -> Result<(UnixStream, Box<dyn Send + Sync>), RequestError> {
        let Connection { stream, port } = home::Control::connect(self)?;
        Ok((stream, Box::new(port)))
    }

    fn attach(
        &self,
        image: Option<&Image>,
        paths: &[String],
        files: &[SmallFile],
    ) -> Result<(), RequestError> {
        home::Control::attach(self, image, paths, files)
    }

    fn show_in_root(&self, image: &Image, name: &str) -> Result<(), RequestError> {
        home::Control::show_in_root(self, image, name)
    }
}

struct Teller<'a>(&'a mut (dyn FnMut(Event) + Send));

impl HomeHost for Teller<'_> {
    fn connected(&mut self, event: Event) {
        (self.0)(event);
    }
}

impl Machine for home::Keeper {
    fn cpu_meter(&self) -> Option<CpuMeter> {
        let meter = home::Keeper::cpu_meter(self)?;
        Some(Box::new(move || meter.used()))
    }

    fn run(self: Box<Self>, tell: &mut (dyn FnMut(Event) + Send), cancel: &Cancel) -> (HomeEnd, Usage) {
        home::Keeper::run(*self, &mut Teller(tell), cancel)
    }
}
