//! Run-time selection of the implementation: the fast path with the widest SIMD instruction set of this machine.
//!
//! The environment variable `LLM_KERNELS_UNIT` selects another one, so that one machine can run every path: "reference"
//! runs the references instead of the fast paths, in every program; "avx2" and "portable" limit the instruction set, in the
//! tests of this crate.

use std::sync::OnceLock;

const VARIABLE: &str = "LLM_KERNELS_UNIT";

/// True if every operation runs its reference, as on a device without a fast path: `LLM_KERNELS_UNIT` is "reference".
pub fn reference_only() -> bool {
    static REFERENCE_ONLY: OnceLock<bool> = OnceLock::new();
    *REFERENCE_ONLY.get_or_init(|| std::env::var_os(VARIABLE).is_some_and(|unit| unit == "reference"))
}

/// For tests of a property of the fast paths: true if they are switched off (`LLM_KERNELS_UNIT` is "reference"). Prints
/// the reason why the test is skipped.
///
/// ```
/// if llm_kernels::skip_on_reference_path("the memory bound is that of the fused attention") {
///     return;
/// }
/// ```
pub fn skip_on_reference_path(reason: &str) -> bool {
    if reference_only() {
        eprintln!("skipped on the reference path: {reason}");
    }
    reference_only()
}

/// The instruction set for loops that `pulp` compiles.
#[inline(always)]
pub fn arch() -> pulp::Arch {
    #[cfg(all(test, target_arch = "x86_64"))]
    if !avx512_is_allowed() {
        return avx2().map_or(pulp::Arch::Scalar, pulp::Arch::V3);
    }
    pulp::Arch::new()
}

/// AVX2 and FMA, for code written in AVX2 intrinsics.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn avx2() -> Option<pulp::x86::V3> {
    pulp::x86::V3::try_new().filter(|_| !cfg!(test) || requested() != Some("portable"))
}

/// True if code written in AVX-512 intrinsics may run, provided that the machine has them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn avx512_is_allowed() -> bool {
    !cfg!(test) || requested().is_none()
}

/// The instruction set that `LLM_KERNELS_UNIT` limits tests to.
#[cfg(target_arch = "x86_64")]
fn requested() -> Option<&'static str> {
    static REQUESTED: OnceLock<Option<String>> = OnceLock::new();
    let unlimited = |unit: &String| matches!(unit.as_str(), "avx512" | "reference");
    let requested = REQUESTED.get_or_init(|| std::env::var(VARIABLE).ok().filter(|unit| !unlimited(unit)));
    assert!(matches!(requested.as_deref(), None | Some("avx2" | "portable")), "{VARIABLE} is {requested:?}");
    requested.as_deref()
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_wider_instruction_set_runs_than_requested() {
        match (super::requested(), super::arch()) {
            (None, _) => assert_eq!(std::mem::discriminant(&super::arch()), std::mem::discriminant(&pulp::Arch::new())),
            (Some("avx2"), arch) => assert!(matches!(arch, pulp::Arch::V3(_) | pulp::Arch::Scalar)),
            (Some(_), arch) => assert!(matches!(arch, pulp::Arch::Scalar) && super::avx2().is_none()),
        }
        assert!(super::requested().is_none() || !crate::cpu::gemm::Precision::Bf16.is_fast());
    }
}
