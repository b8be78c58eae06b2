"""SSH: one connection per host and process, over which everything goes.

wire        what a connection is made of; the one file that knows paramiko
endpoint    where to connect, as whom and with which keys: the block's fields, else what OpenSSH's configuration says
known_hosts which host keys are known
login       proves who we are, in the order that OpenSSH has
connection  the one connection of a host: made when needed, watched, made again when it was lost
bootstrap   starts our program at the other end of a channel
agent       asks that program
rsync_path  lets rsync use a channel
trust       makes a host key known
"""

from slurm_ray_flow.blocks.ssh.block import SshConnection

__all__ = ["SshConnection"]
