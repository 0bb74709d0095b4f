//! The registry of templates, with VMMs that are scripts: a real one needs KVM (`tests/scripts/network` has that).

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;
use crate::backend::{Image, Inputs, Machine};
use crate::kvm::handover::DeviceKind;
use crate::kvm::{KvmBackend, KvmConfig, jail};

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Templates whose VMM says this and ends, with a kernel and an initrd that are files.
fn templates(name: &str, most: usize) -> (Templates, Dir) {
    let dir = std::env::temp_dir().join(format!("templates-test-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let vmm = dir.join("vmm");
    fs::write(&vmm, "#!/bin/sh\necho '{\"event\":\"failed\",\"why\":\"no such luck\"}' >&0\n").unwrap();
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
    for file in ["kernel", "initrd", "kvm"] {
        fs::write(dir.join(file), "one").unwrap();
    }
    let mut config = KvmConfig::new(dir.join("kernel"), dir.join("initrd"));
    config.device = dir.join("kvm");
    config.executable = vmm;
    config.allow_missing = jail::Step::ALL.to_vec();
    let launcher = Launcher { config, cgroups: Err("none in this test".into()) };
    (Templates::new(Arc::new(launcher), most), Dir(dir))
}

fn shape(memory_mib: u32) -> Shape {
    Shape { vcpus: 1, memory_mib, devices: vec![DeviceKind::Vsock, DeviceKind::Rng] }
}

#[test]
fn a_template_that_cannot_be_made_is_tried_once_for_each_kernel() {
    let (templates, dir) = templates("once", 2);
    let made = |memory_mib| templates.make(&shape(memory_mib));
    let why = made(256).unwrap_err();
    assert!(why.contains("no such luck"), "{why}");
    fs::write(dir.0.join("vmm"), "#!/bin/sh\necho '{\"event\":\"failed\",\"why\":\"another\"}' >&0\n")
        .unwrap();
    assert_eq!(made(256).unwrap_err(), why, "it was not tried again");
    assert!(templates.find(&shape(256)).is_none());
    assert!(made(512).unwrap_err().contains("another"), "another shape");
    fs::write(dir.0.join("initrd"), "another one").unwrap();
    assert!(made(256).unwrap_err().contains("another"), "another initrd");
    // The three attempts were more than are kept.
    assert_eq!(templates.shared.lock().all.len(), 2);
}

#[test]
fn without_room_for_templates_none_is_made() {
    let (templates, _dir) = templates("none", 0);
    assert_eq!(templates.make(&shape(256)).unwrap_err(), "no template is made now");
    templates.want(&shape(256));
    assert!(!templates.shared.lock().is_making);
}

#[test]
fn only_one_is_made_at_a_time() {
    let (templates, _dir) = templates("one", 2);
    let key = templates.shared.begin(&shape(256)).unwrap();
    assert!(templates.shared.begin(&shape(512)).is_none());
    templates.shared.make(key);
    assert!(templates.shared.begin(&shape(512)).is_some());
}

fn template(templates: &Templates, memory_mib: u32) -> Arc<Template> {
    let nothing = || File::open("/dev/null").unwrap();
    let key = templates.shared.key(&shape(memory_mib)).unwrap();
    let (memory, snapshot) = (nothing(), nothing());
    Arc::new(Template { key, memory, parts: Vec::new(), written: Vec::new(), snapshot })
}

#[test]
fn the_template_that_was_not_used_for_the_longest_time_goes_first() {
    let (templates, _dir) = templates("used", 2);
    for memory_mib in [256, 512] {
        let made = template(&templates, memory_mib);
        templates.shared.lock().all.push((made.key.clone(), Attempt::Made(made)));
    }
    assert!(templates.find(&shape(256)).is_some());
    assert!(templates.make(&shape(1024)).is_err());
    assert!(templates.find(&shape(512)).is_none() && templates.find(&shape(256)).is_some());
}

#[test]
fn a_template_whose_copy_did_not_start_is_not_used_again() {
    let (templates, _dir) = templates("discard", 2);
    let made = template(&templates, 256);
    templates.shared.lock().all.push((made.key.clone(), Attempt::Made(made.clone())));
    templates.discard(&made, &SandboxError::Unavailable { why: "it fell over".into() });
    assert!(templates.find(&shape(256)).is_none());
    assert!(templates.make(&shape(256)).unwrap_err().contains("it fell over"));
}

#[test]
fn a_template_is_not_to_blame_when_its_vm_does_not_boot_either() {
    let (templates, _dir) = templates("blame", 2);
    let made = template(&templates, 256);
    templates.shared.lock().all.push((made.key.clone(), Attempt::Made(made)));
    let launcher = templates.shared.launcher.clone();
    let backend = KvmBackend { launcher, templates, _keeper: None };
    let inputs = Inputs::Image(Image::default());
    let machine =
        Machine { id: "test", vcpus: 1, memory_mib: 256, inputs: &inputs, network: false, home: false };
    let error = backend.start_vm(machine, &Cancel::new()).err().unwrap().to_string();
    assert!(error.contains("no such luck"), "{error}");
    assert!(backend.templates.find(&shape(256)).is_some());
}

#[test]
fn each_copy_gets_a_seed_of_its_own_and_the_time() {
    let resumed = |bytes: Vec<u8>| {
        let mut decoder = protocol::Decoder::new();
        let frame = decoder.next(&mut bytes.as_slice()).unwrap().unwrap();
        assert_eq!(frame.tag, Tag::Resume);
        frame.parse::<Resume>().unwrap()
    };
    let [one, two] = [resume().unwrap(), resume().unwrap()].map(resumed);
    assert_eq!((one.seed.0.len(), two.seed.0.len()), (SEED, SEED));
    assert_ne!(one.seed, two.seed);
    assert!(one.unix_ns > 1_700_000_000_000_000_000 && two.unix_ns >= one.unix_ns);
}
