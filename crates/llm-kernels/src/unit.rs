//! The vector unit that loops run on: the widest that this machine has. In the tests of this crate it is at most the one that
//! the environment variable `LLM_KERNELS_UNIT` names ("avx2", "portable"), so that every path runs on one machine.

/// The unit that `pulp` compiles a loop for.
#[inline(always)]
pub fn arch() -> pulp::Arch {
    #[cfg(all(test, target_arch = "x86_64"))]
    if !avx512_is_allowed() {
        return avx2().map_or(pulp::Arch::Scalar, pulp::Arch::V3);
    }
    pulp::Arch::new()
}

/// AVX2 with its companions, for what is written in its own instructions.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn avx2() -> Option<pulp::x86::V3> {
    pulp::x86::V3::try_new().filter(|_| !cfg!(test) || asked() != Some("portable"))
}

/// Whether what is written in instructions of AVX-512 may run, where the machine has them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn avx512_is_allowed() -> bool {
    !cfg!(test) || asked().is_none()
}

/// What `LLM_KERNELS_UNIT` asks for; nothing is asked of what is not a test.
#[cfg(target_arch = "x86_64")]
fn asked() -> Option<&'static str> {
    static ASKED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let asked = ASKED.get_or_init(|| std::env::var("LLM_KERNELS_UNIT").ok().filter(|unit| unit != "avx512"));
    assert!(matches!(asked.as_deref(), None | Some("avx2" | "portable")), "LLM_KERNELS_UNIT is {asked:?}");
    asked.as_deref()
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_wider_unit_is_taken_than_was_asked_for() {
        match (super::asked(), super::arch()) {
            (None, _) => assert_eq!(std::mem::discriminant(&super::arch()), std::mem::discriminant(&pulp::Arch::new())),
            (Some("avx2"), arch) => assert!(matches!(arch, pulp::Arch::V3(_) | pulp::Arch::Scalar)),
            (Some(_), arch) => assert!(matches!(arch, pulp::Arch::Scalar) && super::avx2().is_none()),
        }
        assert!(super::asked().is_none() || !crate::matmul::Precision::Bf16.is_fast());
    }
}
