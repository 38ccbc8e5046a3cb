"""The controller plugin: CSI calls become StorageVolumes and StorageSnapshots, which nodes carry out."""
