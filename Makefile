.PHONY: check format lint test docs

# Everything that a change must pass.
check: format lint test docs

format:
	cargo fmt --check

lint:
	cargo clippy --all-targets --locked -- -D warnings

# The README's test command, taken from the README itself so that the two cannot part.
test:
	bash -euc "$$(sed -n '/^<!-- test command -->/,/^```$$/p' README.md | grep -v -e '^<!--' -e '^```')"

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
