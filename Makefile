# Each target is a few lines; what needs more lives in scripts/. `make` alone lists them.
PORT ?= 8080

.PHONY: help demo test check soak drill bench
help:
	@echo 'make demo    install redis-server if there is none, build, serve on 127.0.0.1:$(PORT) (PORT=… for another)'
	@echo 'make test    install what the tests need, then format, lints, documentation, doctests and every test'
	@echo 'make check   dependencies, features, compilers, docs, packages, loom, mutants, fuzz targets (PARTS="docs loom" for some of it)'
	@echo 'make soak    the long runs, every test three times, and the 45 s outage: 45 minutes (ROUNDS=20 for a night; PARTS="client outage")'
	@echo 'make drill   every built-in drill, then the applications under examples/; reports under target/drills/'
	@echo 'make bench   timings; never part of the tests'

# `exec` and cargo, which replaces itself by the program it runs, leave nothing between Ctrl-C and the service.
demo:
	@scripts/install redis
	@exec cargo run --locked --package steadfast-cli -- demo --listen 127.0.0.1:$(PORT)

test:
	@scripts/install redis mariadb postgres pgbouncer node chromium python promtool
	@scripts/test

check:
	@scripts/install redis
	@scripts/check $(PARTS)

soak:
	@scripts/install redis mariadb postgres pgbouncer python
	@scripts/soak $(PARTS)

drill:
	@scripts/install redis node python
	@scripts/drill

bench:
	@scripts/install redis wrk
	@scripts/bench
