"""The guest of tests/passt.rs: a TAP device whose frames go over a SOCK_SEQPACKET socket, and curl.

Runs in network and mount namespaces of its own. Its argument is the number of the socket. With `hold NAME` instead, it
makes a device that has a carrier for as long as its input is open: the host's way to the internet."""
import fcntl
import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
BIG = 40 << 20


def device(name):
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


if sys.argv[1] == "hold":
    tap = device(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.read()
    sys.exit()

sock = socket.socket(fileno=int(sys.argv[1]))
tap = device("eth0")


def shell(line):
    subprocess.run(["sh", "-ec", line], check=True)


shell(
    """
    ip link set lo up
    ip link set eth0 address 52:55:00:00:00:02 mtu 1500
    ip link set eth0 up
    ip addr add 192.0.2.2/24 dev eth0
    ip -6 addr add fd52:5500::2/64 dev eth0 nodad
    ip route add default via 192.0.2.1
    ip -6 route add default via fe80::1 dev eth0
    echo 0 0 > /proc/sys/net/ipv4/ping_group_range
    mount -t tmpfs none /mnt
    echo nameserver 192.0.2.53 > /mnt/resolv.conf
    mount --bind /mnt/resolv.conf "$(readlink -f /etc/resolv.conf)"
    """
)


def pump(read, write):
    while frame := read():
        try:
            write(frame)
        except OSError:
            return


threading.Thread(target=pump, args=(lambda: os.read(tap, 2000), sock.send), daemon=True).start()
threading.Thread(target=pump, args=(lambda: sock.recv(2000), lambda f: os.write(tap, f)), daemon=True).start()


def curl(*arguments):
    return subprocess.run(["curl", "-sS", "--max-time", "20", *arguments], capture_output=True)


def say(name, result):
    print(f"{name}: {result}", flush=True)


def fails(name, *arguments):
    begin = time.monotonic()
    code = curl(*arguments).returncode
    spent = time.monotonic() - begin
    say(name, f"{code} at once" if spent < 4 else f"{code} after {spent:.1f} s")


for host in ["one.test", "six.test", "1.1.1.1"]:
    say(host, (lambda done: (done.stdout or done.stderr).decode())(curl(f"http://{host}/")))
expected = bytes((i * 31 >> 7) & 255 for i in range(1 << 15)) * (BIG >> 15)
begin = time.monotonic()
body = curl("http://one.test/big").stdout
print(f"download: {len(body) / (time.monotonic() - begin) / 1e6:.0f} MB/s", file=sys.stderr)
say("down", f"{len(body)} {'same' if hashlib.sha256(body).digest() == hashlib.sha256(expected).digest() else 'other'}")
with open("/mnt/big", "wb") as file:
    file.write(expected)
begin = time.monotonic()
say("up", curl("-T", "/mnt/big", "http://one.test/").stdout.decode())
print(f"upload: {BIG / (time.monotonic() - begin) / 1e6:.0f} MB/s", file=sys.stderr)
urls = [f"http://one.test/{i}" for i in range(100)]
say("parallel", curl("--parallel", "--parallel-max", "50", "--no-progress-meter", *urls).stdout.decode().count("hello"))
fails("10.9.9.9", "http://10.9.9.9/")
fails("rebound.test", "http://rebound.test/")
fails("metadata.test", "http://metadata.test/")
fails("box.test", "http://box.test/")
fails("link-local", "http://169.254.0.1/")
fails("mapped", "-g", "http://[64:ff9b::a09:909]/")
fails("mail", "http://1.1.1.1:25/")
fails("denied.test", "http://denied.test/")
fails("nowhere.test", "http://nowhere.test/")
fails("closed", "http://1.1.1.1:81/")
begin = time.monotonic()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping:
    ping.settimeout(5)
    ping.setsockopt(socket.IPPROTO_IP, 11, 1)
    try:
        ping.connect(("1.1.1.1", 0))
        ping.send(struct.pack("!BBHHH", 8, 0, 0, 0, 1))
        ping.recv(100)
        say("ping", "answered")
    except OSError as error:
        say("ping", "refused at once" if time.monotonic() - begin < 4 else f"{error}")
os._exit(0)
