//! Common checks for published attacks on builders: whether a build can reach another user's process or
//! files.

/// A builder's script, using only builtins of the shell, that looks for ways out of its sandbox and fails
/// naming the first.
///
/// - Writable places that are files of the host (Nix: CVE-2024-38531, CVE-2025-46415, -52991, -52992, -52993: build folders and
///   outputs below the host's own folders). Device files such as `/dev/null` are the host's where the kernel is.
/// - Sockets without a path, over which builds of one host pass each other open files (Nix:
///   CVE-2024-27297, CVE-2025-46416, CVE-2026-39860).
pub const LOOK_FOR_A_WAY_OUT: &str = r#"
while read -r id parent device root point options rest; do
    case "$point" in /dev/null|/dev/zero|/dev/full|/dev/random|/dev/urandom|/dev/tty|/dev/console) continue;; esac
    case ",$options," in *,rw,*) ;; *) continue;; esac
    case " $rest " in
        *" - tmpfs "*|*" - proc "*|*" - devpts "*|*" - overlay "*|*" - sysfs "*) ;;
        *) echo "writable: $point $rest" >&2; exit 1;;
    esac
done < /proc/self/mountinfo
while read -r line; do
    case "$line" in *@*) echo "abstract socket: $line" >&2; exit 1;; esac
done < /proc/net/unix
echo nothing > $out
"#;

/// In a micro-VM: the processor must show no event counters, which the work of other VMs would change.
pub const LOOK_FOR_COUNTERS: &str = r#"
while read -r line; do
    case " $line " in
        *" perfctr_core "*|*" perfctr_nb "*|*" perfctr_llc "*|*" arch_perfmon "*|*" ibs "*|*" lwp "*|*" dts "*|*" intel_pt "*)
            echo "counters: $line" >&2; exit 1;;
    esac
done < /proc/cpuinfo
"#;
