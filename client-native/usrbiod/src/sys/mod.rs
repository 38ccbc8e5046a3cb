//! System calls that rustix lacks: one safe function each, the argument for it inside, errno out.
