//! Makes a netboot release from a root file system, and has the tools to serve and try a release.
//!
//! Uses Debian packages, EROFS, cpio, iPXE and QEMU. Of the agent and of access-manager it only knows the
//! places of their binaries and files (`docs/design/image.md`).

pub mod accel;
pub mod archive;
pub mod base;
pub mod cpio;
pub mod fetch;
pub mod files;
pub mod guest;
pub mod home;
pub mod kernel;
pub mod kernel_package;
pub mod manifest;
pub mod modules;
pub mod processes;
pub mod progress;
pub mod qemu;
pub mod release;
pub mod root;
pub mod roster;
pub mod serve;
pub mod tool;
pub mod tree;
pub mod try_box;

#[cfg(test)]
mod testing;
