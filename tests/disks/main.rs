//! Real disks, real crashes.
