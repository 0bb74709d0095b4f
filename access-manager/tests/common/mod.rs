//! Public keys for tests. Their private halves were thrown away.
#![allow(dead_code)] // each test file uses some of them

pub const A: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl";
pub const B: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILzCIdzYczmmlDk8ussjhaNUDX+Jf/bMsqNAWcdAohZz";
pub const ECDSA_256: &str =
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBKUXgK/excxzv6Z0kYVoHqxxSSZGosNR17+hTJGOWBV609KWDd3K6YrpqQIH/eh+NaqsjWeYuV8uKSZDPUoidco=";
pub const RSA_3072: &str =
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQCtMCyyLsplbp0TvwIemcWQL4OYrVHeVIwzkKE728fKwLqoIqgmVdz1QcSil+35eW7lXlZIizI44UkQiCVxktyHweMaHeuXHcHYctTkYLb+fJfZjgnd2LsPdf2Y+AysxmpQY43KG0M2vXbpxSCuhtYvKEoJPXXzEKo0VK65uYZAP+PrxcscP5FnWzO+Ovpg+MinIwsOJnZ8+wqndUU1vPCrMpGxKcb4tXJRH49Mfq+cgx5+lKyT39IKLTf5BBg7/GHS0WPK1PpuWpZ2WkmFs/IuQFMXeVv8XRHEcCKx+edhs4fbufl4tUuoER9XqK+O49b9aVLFuzbUJO7fm8KW4JGcehAxPCJpn5GSuJoJyib23IpmAVFlqTXmP7NrbmP7xNapLjLUTNkIXDFNel95dwjS4+dAKuwR3AQLzFeygeS90BaPZ+mzBoppYSa/sFVRnB1GkIUqRBG+160RZ0SBhcmYiX4D7AZ4m7/0Z9jwvhVp9qaAWvHotW3tIgxk0sqji8k=";
pub const ECDSA_384: &str =
    "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBOXa99N2qoXj/2ONt5jX5wHVjF/xpE4uRNt6tIC+rcM0JoC3IrNbF+3Cae87FxsfDQ32a6cpL6JvKqm3H92WjhrQik1wQQnG9STe2PzfZTzyDi77jUEtAboYSSbP2GJ55w==";
pub const ECDSA_521: &str =
    "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBADF6DNQWJ/+mhIMUVpYNaXnJ4xaC23jN2gVibFDGETnIHfbV4WI3MRyyYPL4wb9m9oGx4jD+araBFgXyjX6NvhQYwHfX4UEPmUAWZ9ofzmm2R6eNIcbv2UK1LP/dWTH1fwWTleiJLgrL6M1NsSTAcvUY27yzNbhHCtHrsh6EbToWru0TA==";
pub const RSA_1024: &str =
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDKWCm4CKR7qtge4NAgrPYSE05KTBn0gJihWUN1czaAtnxN7E4KN5yrVZbpZl6ye2Xiy7glvIsZXPeFlhc/bKM1Us0tCEHHGhX11vGnnQrVgzKVZyuAlShrLHxnDfIRDGdU+I3vegaQxJF3grcxfHs8UPcf/qgQp7RRvE/Im5iMTQ==";
pub const DSA: &str =
    "ssh-dss AAAAB3NzaC1kc3MAAACBAPWH52XxME2iLv0MN+Nv8RA2gna4Ba4qig6vyeNiNqeu/k4xMDdfRf7YXzLMdZpm1pX/BSs+IkbAiSSz4BQYF94Vlct+7K827RCeFY6xTHzBRdqmw30UGX59YRIjX0D5H3/RbZ2qSHcQ+SXBWd4dUX0eD39zgpLKniXe5LzLswHdAAAAFQC1cJmRrEk2Oy+DzZNZhOLSTDep6wAAAIAEzKmmYuUue/+zaIOQdWM6Ma7VhIBWfUU+/JxXpg3cCjZR4YEJi0q8uiNpKE2CgTUD5i5eQrYmwtXu5VlmxLG6QpZrwjMBk7s2ul6YGBpHUAfoiHG7KDHw2Gt7+8cZqrc5PGJwr7ZMPLpnhcRd19L6tiI92/IVIUnsGi8Pt72EHAAAAIAdY5rV0FSv29d+3nXXZbdtMBomEpAuYpCc3ivTkF//NST/ojnp1nU0HyyrsNrwfO/0kbdff4cAC/3DHZuHjWHkYbhXzErKa2mjsR97qUSylj76i1Gv7Z2GDsppBFKrQmOnIgDbUMYUbH+ycDXdiUQs9Sr40nnFQcy2RtnGdC7vBA==";
pub const SK_ED25519: &str =
    "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJlAAAABHNzaDo=";
pub const SK_ECDSA: &str =
    "sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAIbmlzdHAyNTYAAABBBKUXgK/excxzv6Z0kYVoHqxxSSZGosNR17+hTJGOWBV609KWDd3K6YrpqQIH/eh+NaqsjWeYuV8uKSZDPUoidcoAAAAEc3NoOg==";
