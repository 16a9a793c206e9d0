//! All integration tests in one program, so that what they share is compiled and linked once. `scripts/nextest run` gives each test a process of its
//! own, in the order and with the company that tests/nextest.toml says.

mod brokers;
mod cli;
mod faults;
mod fuzz;
mod relay;
mod rollout;
mod siege;
mod support;
