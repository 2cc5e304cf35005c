.PHONY: check format lint features test docs deny

# Everything that a change must pass.
check: format lint features test docs deny

format:
	cargo fmt --all --check

# In the profile of the tests, as the documentation: then the kernels are compiled once for all three.
lint:
	cargo clippy --workspace --all-targets --all-features --locked --profile test -- -D warnings

# Each feature alone compiles, and the core stays small: no command line, no training, no network.
features:
	bash tests/features.sh

# The README's test command, taken from the README itself so that the two cannot part.
test:
	bash -euc "$$(sed -n '/^<!-- test command -->/,/^```$$/p' README.md | grep -v -e '^<!--' -e '^```')"

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --all-features --profile test

# Licences, sources and versions of all dependencies. Advisories are looked up where their database can be reached.
deny: export PATH := $(CURDIR)/target/tools/bin:$(PATH)
deny:
	cargo deny --version >/dev/null 2>&1 || cargo install --quiet --locked --debug --root target/tools cargo-deny@0.20.2
	cargo deny --all-features check licenses bans sources
	if cargo deny fetch db; then cargo deny --all-features check advisories; \
	else echo 'advisories: not checked, since their database cannot be reached'; fi
