"""SSH: one connection per host and process, over which everything goes.

transport        paramiko, and what of it is ours; the one file that imports it
open_connection  one connection that is open: its log-in, its channels
endpoint         where to connect, as whom and with which keys: the block's fields, else OpenSSH's configuration
known_hosts      which host keys are known
authentication   proves who we are, in the order that OpenSSH has
connection       the one connection of a host: made when needed, watched, made again when it was lost
bootstrap        starts our program at the other end of a channel
agent            asks that program
rsync_socket     lets rsync use a channel
trust            makes a host key known
"""

from slurm_ray_flow.blocks.ssh.block import SshConnection

__all__ = ["SshConnection"]
