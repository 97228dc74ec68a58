//! Wire types as values of aya's maps.

/// A wire type in a map. The orphan rule does not allow an implementation of aya's `Pod` for the wire's types themselves.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Pod<T>(pub T);

// SAFETY: bytemuck's `Pod` holds only for types without padding for which any bytes are valid; the wire derives it.
unsafe impl<T: bytemuck::Pod> aya::Pod for Pod<T> {}
