//! Run-time selection of the SIMD instruction set: the widest one of this machine. In the tests of this crate, the
//! environment variable `LLM_KERNELS_UNIT` ("avx2", "portable") limits it, so that one machine can run every path.

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

/// The value of `LLM_KERNELS_UNIT`; read by tests only.
#[cfg(target_arch = "x86_64")]
fn requested() -> Option<&'static str> {
    static REQUESTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let requested = REQUESTED.get_or_init(|| std::env::var("LLM_KERNELS_UNIT").ok().filter(|unit| unit != "avx512"));
    assert!(matches!(requested.as_deref(), None | Some("avx2" | "portable")), "LLM_KERNELS_UNIT is {requested:?}");
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
