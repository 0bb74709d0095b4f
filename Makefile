# The few commands of this project. Each is a script under tests/scripts, which says what it does.
.PHONY: help plan up down test test-takeover test-network test-clients test-kills lint bench bench-protocol simulate deps image
help:
	@echo 'make up      try it: netboot a box in QEMU, build a real C program on it, work in a home, leave it running'
	@echo 'make down    end the box of `make up`'
	@echo 'make test    prove it: lint, unit tests, stock Nix clients, the netbooted box'
	@echo 'make test-takeover   an agent takes over from another one while a micro-VM of a netbooted box builds'
	@echo 'make test-network    fixed outputs are fetched in micro-VMs of a netbooted box, from what its policy allows'
	@echo 'make test-clients    curl, git, ssh, cargo, npm, pip, go and Nix fetch behind the network of a builder'
	@echo 'make test-kills      the same box, while its VMs, guards, passts and the agent are killed: nothing is left; for more, see'
	@echo '             tests/scripts/kills: `tests/scripts/kills 500 50`'
	@echo 'make lint    formatting, clippy, licences and duplicate dependencies'
	@echo 'make bench   measure it: boot, build start, memory, and all of bench-protocol; no thresholds'
	@echo 'make bench-protocol   copies and builds over ssh beside stock OpenSSH + nix-daemon; BENCH_RUNS=1 and'
	@echo '             smaller BENCH_* sizes (see the script) for a first look within a minute'
	@echo 'make simulate   the queue of a busy box on a simulated clock, beside other policies; prints Markdown'
	@echo 'make image   the netboot release alone, in target/image'
	@echo 'make plan    what `make up` would install, download and compile, and how large that is'
	@echo 'make deps    what the above install with apt when it is missing'
plan:
	@tests/scripts/plan
up:
	@tests/scripts/up
down:
	@tests/scripts/box down target/demo
test:
	@tests/scripts/test
test-takeover: deps
	@tests/scripts/takeover
test-network: deps
	@tests/scripts/network
test-clients: deps
	@tests/scripts/clients
test-kills: deps
	@tests/scripts/kills
lint: deps
	@tests/scripts/lint
bench:
	@tests/scripts/bench
	@tests/scripts/bench-protocol
bench-protocol:
	@tests/scripts/bench-protocol
simulate:
	@cargo build --quiet --release --workspace --example simulate
	@target/release/examples/simulate
image: deps
	@tests/scripts/build --image
deps:
	@tests/scripts/install-deps --tests
