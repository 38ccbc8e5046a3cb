"""The node agent: carries out the StorageVolumes and StorageSnapshots of its node, and reports the node."""
