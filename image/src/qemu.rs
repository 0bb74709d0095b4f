//! The QEMU command line of a box: firmware, iPXE in the network card, DHCP that points to the boot server.
//!
//! No step is skipped: kernel and initrd reach the box over HTTP, as on real hardware.

use crate::accel::Accel;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The address under which QEMU's user network shows the host's loopback to the box.
const HOST_FROM_INSIDE: &str = "10.0.2.2";

pub struct Machine {
    pub accel: Accel,
    pub memory_mib: u32,
    pub cpus: u32,
    /// The URL of `/boot.ipxe`, as the box sees it.
    pub boot_url: String,
    /// Port on the host's loopback that leads to the box's port 22.
    pub ssh_port: u16,
    /// Raw disk images, which the box sees as virtio disks.
    pub disks: Vec<PathBuf>,
    /// Names and values of systemd credentials, passed through the firmware.
    pub credentials: Vec<(String, String)>,
}

/// The URL, as seen by the box, of a boot server on the host's loopback.
pub fn url_from_inside(server: SocketAddr) -> String {
    format!("http://{HOST_FROM_INSIDE}:{}/boot.ipxe", server.port())
}

impl Machine {
    pub fn command(&self, serial: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-name", "barnraiser", "-nodefaults", "-display", "none"])
            // graphics=off: firmware and iPXE print on the serial line too. No SATA: probing its empty ports
            // takes time.
            .args(["-machine", "q35,graphics=off,sata=off"])
            .args(self.accel.arguments())
            .args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()])
            .args(["-serial", &format!("file:{}", escape(&serial.to_string_lossy()))])
            .args([
                "-netdev",
                &format!(
                    "user,id=net0,bootfile={},hostfwd=tcp:127.0.0.1:{}-:22",
                    escape(&self.boot_url),
                    self.ssh_port
                ),
            ])
            .args(["-device", "virtio-net-pci,netdev=net0,bootindex=1"])
            .args(["-device", "virtio-rng-pci"]);
        for (position, disk) in self.disks.iter().enumerate() {
            let disk = escape(&disk.to_string_lossy());
            command.args(["-drive", &format!("file={disk},if=none,id=disk{position},format=raw")]);
            command.args(["-device", &format!("virtio-blk-pci,drive=disk{position}")]);
        }
        for (name, value) in &self.credentials {
            let value = escape(&format!("io.systemd.credential:{name}={value}"));
            command.args(["-smbios", &format!("type=11,value={value}")]);
        }
        command
    }
}

/// Escapes a value for QEMU's options: a comma ends a value, and two commas stand for one.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Vec<String> {
        let machine = Machine {
            accel: Accel::Tcg,
            memory_mib: 2048,
            cpus: 2,
            boot_url: url_from_inside("127.0.0.1:8480".parse().unwrap()),
            ssh_port: 2222,
            disks: vec!["/a,b.img".into()],
            credentials: vec![("barnraiser.roster".into(), "http://x/?a,b".into())],
        };
        let command = machine.command(Path::new("/tmp/serial.log"));
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_box_boots_from_the_network_and_not_from_files_on_the_command_line() {
        let arguments = arguments();
        let network = arguments.iter().find(|argument| argument.starts_with("user,")).unwrap();
        assert!(network.contains("bootfile=http://10.0.2.2:8480/boot.ipxe"), "{network}");
        assert!(network.contains("hostfwd=tcp:127.0.0.1:2222-:22"), "{network}");
        assert!(!arguments.iter().any(|argument| argument == "-kernel" || argument == "-initrd"));
    }

    #[test]
    fn without_hardware_kvm_the_boxes_processor_still_has_virtualisation() {
        assert!(arguments().contains(&"EPYC,+svm,+npt,-cx16".to_owned()));
    }

    #[test]
    fn commas_in_values_cannot_start_new_options() {
        let arguments = arguments();
        assert!(arguments.iter().any(|argument| argument.contains("file=/a,,b.img,if=none")));
        assert!(arguments.iter().any(|argument| argument.ends_with("roster=http://x/?a,,b")));
    }
}
