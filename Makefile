# isopod: two commands on a fresh Debian machine with Rust:
#   make demo   shows a real image running in a virtual machine of its own
#   make test   runs every test
# `make help` lists the rest.

PREFIX  ?= /usr/local
DESTDIR ?=
ENGINE  ?= auto
PROFILE ?= release

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
TRIPLE     := x86_64-unknown-linux-gnu
BIN_DIR    := $(TARGET_DIR)/$(TRIPLE)/$(PROFILE)
# What guests boot; tests and the demonstration look here.
GUEST_DIR  := $(TARGET_DIR)/guest-artifacts
AGENT      := $(TARGET_DIR)/guest/$(TRIPLE)/guest/isopod-agent

# Programs that carry their C library: each starts 0.4 ms sooner without a dynamic linker's work, one build runs on
# every distribution, and what is jailed reads no library. Naming the target keeps the flag away from build scripts
# and procedural macros.
STATIC := RUSTFLAGS='-C target-feature=+crt-static'
HOST   := --locked --profile $(PROFILE) --target $(TRIPLE)

PROGRAMS := containerd-shim-isopod-v2 isopod isopod-fs isopod-vmm isopod-jail

# What the build, the guest kernel and the tests need beyond Rust, as Debian packages.
PACKAGES := bc bison busybox-static ca-certificates containerd cpio e2fsprogs erofs-utils flex gcc iproute2 \
            libc6-dev libelf-dev linux-source-6.12 make mount patch perl qemu-system-common \
            qemu-system-x86 runc seabios util-linux xz-utils

export ISOPOD_BIN_DIR := $(abspath $(BIN_DIR))
export ISOPOD_KERNEL  := $(abspath $(GUEST_DIR)/vmlinux)
export ISOPOD_IMAGE   := $(abspath $(GUEST_DIR)/guest.erofs)
export ISOPOD_SELFTEST_IMAGE := $(abspath $(GUEST_DIR)/selftest.erofs)
export ISOPOD_ENGINE  := $(ENGINE)

.PHONY: help deps build host agent kernel image guest selftest newer-containerd demo test test-programs lint bench install clean

help:
	@echo 'make demo [ENGINE=auto|kvm|qemu]   run an OCI image in a virtual machine of its own, with private containerd'
	@echo 'make test [TESTS=name]         every test, or the end-to-end tests whose names contain TESTS'
	@echo '                               (TESTS=kvm-smoke: those that run on the monitor, too; of the groups in'
	@echo '                               ISOPOD_TEST_MONITOR=identity,streams all do)'
	@echo 'make build                     host binaries, guest kernel, guest image'
	@echo 'make install [DESTDIR=] [PREFIX=/usr/local]   what make build has built; as root'
	@echo 'make bench                     performance tables; JSON in $(TARGET_DIR)/bench'
	@echo 'make lint                      rustfmt, clippy, house rules, cargo deny'
	@echo 'make deps                      install missing Debian packages'
	@echo 'make clean                     remove build products (the kernel cache stays)'

# Installs what is missing, and says what; silent when nothing is.
deps:
	@missing=; for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${db:Status-Abbrev}' "$$package" 2>/dev/null | grep -q '^ii' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages:$$missing"; \
	  if [ "$$(id -u)" -ne 0 ]; then echo "not root: run  sudo apt-get install --no-install-recommends$$missing"; exit 1; fi; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi

# Side by side: each spends its last third linking on one processor.
build: deps
	$(MAKE) --no-print-directory -j host guest

host: deps
	$(STATIC) cargo build $(HOST) --workspace --exclude isopod-agent --exclude isopod-tests --exclude isopod-xtask

# The guest image holds nothing else, no C library either. A directory of its own lets it be built beside the
# host's programs.
agent: deps
	$(STATIC) cargo build --locked --profile guest --target $(TRIPLE) \
	  --target-dir $(TARGET_DIR)/guest --package isopod-agent

kernel: deps
	guest-kernel/build $(GUEST_DIR)

image: agent
	mkdir -p $(GUEST_DIR)
	rootfs-builder/build $(AGENT) $(GUEST_DIR)/guest.erofs

guest: kernel image

# An image whose agent tests the guest's devices, for a test: never shipped, hence a target of its own.
selftest: deps
	mkdir -p $(GUEST_DIR)
	$(STATIC) cargo build --locked --profile guest --target $(TRIPLE) \
	  --target-dir $(TARGET_DIR)/guest-selftest --package isopod-agent --features selftest
	rootfs-builder/build $(TARGET_DIR)/guest-selftest/$(TRIPLE)/guest/isopod-agent $(GUEST_DIR)/selftest.erofs

demo: build
	$(STATIC) cargo run --quiet $(HOST) --package isopod-tests --bin isopod-demo

# A newer containerd than the installed one: some end-to-end cases run under both. Without it, and without
# a way to fetch it, they are skipped by name.
newer-containerd: deps
	tests/newer-containerd $(TARGET_DIR)/newer-containerd || echo 'cases that need it will be skipped'

# All that is to be built first, side by side; then nothing is built beside a test.
test: deps
	$(MAKE) --no-print-directory -j host guest selftest newer-containerd test-programs
	guest-kernel/test $(GUEST_DIR)/config
	rootfs-builder/test $(AGENT)
	cargo xtask test $(TESTS)

test-programs: deps
	cargo xtask test --no-run $(TESTS)

bench: build
	$(STATIC) cargo run --quiet $(HOST) --package isopod-tests --bin isopod-bench -- $(BENCH)

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features isopod-agent/testing,isopod-agent/selftest -- -D warnings
	cargo xtask rules
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check bans licenses sources; \
	else echo 'cargo deny is not installed: licences of dependencies were not checked (cargo install --locked cargo-deny)'; fi

# Where things lie is the built-in default, a comment in the settings, only below /usr/local.
ifneq ($(PREFIX),/usr/local)
PLACES := s|^\#\(.*"\)/usr/local/|\1$(PREFIX)/|
endif

# What `make build` has built: under sudo there may be no Rust to build it with.
install:
	@for file in $(addprefix $(BIN_DIR)/,$(PROGRAMS)) $(GUEST_DIR)/vmlinux $(GUEST_DIR)/guest.erofs; do \
	  [ -e $$file ] || { echo "$$file is not there: run  make build"; exit 1; }; \
	done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/isopod $(DESTDIR)$(PREFIX)/share/isopod $(DESTDIR)/etc/isopod
	install -m 755 $(BIN_DIR)/containerd-shim-isopod-v2 $(BIN_DIR)/isopod $(DESTDIR)$(PREFIX)/bin/
	install -m 755 $(BIN_DIR)/isopod-fs $(BIN_DIR)/isopod-vmm $(BIN_DIR)/isopod-jail $(DESTDIR)$(PREFIX)/libexec/isopod/
	install -m 644 $(GUEST_DIR)/vmlinux $(GUEST_DIR)/guest.erofs $(DESTDIR)$(PREFIX)/share/isopod/
	[ -e $(DESTDIR)/etc/isopod/isopod.toml ] || sed '$(PLACES)' runtime/settings/isopod.toml > $(DESTDIR)/etc/isopod/isopod.toml

clean:
	cargo clean
