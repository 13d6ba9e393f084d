//! The files of one guest, all of them in memory.
//!
//! Owns: folders, files, descriptors, and the limits on each. Never touches a file of the machine's,
//! so no fault in a path's reading reaches one.
//!
//! A file is an inode with any number of names (one, or none while it is open and unlinked), as on
//! POSIX systems. There are no links of either sort. The whole of it is part of a checkpoint.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use crate::policy::{FILE_BYTES_MAX, FILES_MAX, Folder, OPEN_MAX, PATH_BYTES_MAX};
use crate::wasi::Errno;

/// The first descriptor of a folder; those before are standard input, output and error.
pub(crate) const FIRST_FD: u32 = 3;

/// The flag of a descriptor whose writes go to the end of the file.
const APPEND: u16 = 1;

/// The number under which the roots of folders begin; it cannot be a file's.
const ROOT: u64 = 1;

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Files {
    /// The path at which the guest sees each, and whether it may change it. A folder's number is its
    /// place here, its root's inode `ROOT` plus that.
    #[n(0)]
    mounts: Vec<Mount>,
    #[n(1)]
    names: BTreeMap<(u32, String), u64>,
    #[n(2)]
    inodes: BTreeMap<u64, Inode>,
    #[n(3)]
    open: BTreeMap<u32, Open>,
    #[n(4)]
    next_inode: u64,
    #[n(5)]
    bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Mount {
    #[n(0)]
    path: String,
    #[n(1)]
    write: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Inode {
    #[n(0)]
    Folder,
    #[n(1)]
    File(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Open {
    #[n(0)]
    mount: u32,
    #[n(1)]
    path: String,
    #[n(2)]
    inode: u64,
    #[n(3)]
    at: u64,
    #[n(4)]
    access: Access,
    /// WASI's `fdflags`. Only appending makes a difference here; the others are kept to be told.
    #[n(5)]
    flags: u16,
}

/// What a descriptor was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Access {
    #[n(0)]
    pub(crate) read: bool,
    #[n(1)]
    pub(crate) write: bool,
}

/// How to open a path, as WASI's `oflags` and `fdflags` say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) create: bool,
    pub(crate) folder: bool,
    pub(crate) exclusive: bool,
    pub(crate) truncate: bool,
    pub(crate) flags: u16,
    pub(crate) access: Access,
}

/// What a file or folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) inode: u64,
    pub(crate) folder: bool,
    pub(crate) bytes: u64,
}

/// Why a call on files failed: an error of the file's, or of the policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The guest is told this number.
    Errno(Errno),
    /// The policy does not grant it.
    Denied,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused::Errno(errno)
    }
}

impl Files {
    pub(crate) fn new(folders: &BTreeMap<String, Folder>) -> Files {
        let mut files = Files {
            next_inode: ROOT + folders.len() as u64,
            ..Files::default()
        };
        for (mount, (path, folder)) in (0..).zip(folders) {
            files.mounts.push(Mount {
                path: path.clone(),
                write: folder.write,
            });
            let root = ROOT + u64::from(mount);
            files.inodes.insert(root, Inode::Folder);
            files.names.insert((mount, String::new()), root);
            files.open.insert(
                FIRST_FD + mount,
                Open {
                    mount,
                    path: String::new(),
                    inode: root,
                    at: 0,
                    access: Access {
                        read: true,
                        write: folder.write,
                    },
                    flags: 0,
                },
            );
            for (name, text) in &folder.files {
                for (end, _) in name.match_indices('/') {
                    let parent = (mount, name[..end].to_owned());
                    if !files.names.contains_key(&parent) {
                        files.link(parent, Inode::Folder);
                    }
                }
                files.bytes += text.len() as u64;
                let content = text.clone().into_bytes();
                files.link((mount, name.clone()), Inode::File(content));
            }
        }
        files
    }

    fn link(&mut self, name: (u32, String), inode: Inode) -> u64 {
        let number = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(number, inode);
        self.names.insert(name, number);
        number
    }

    /// Whether the guest was granted any folder at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    /// The path at which the guest sees the folder, if the descriptor is that of a granted one.
    pub(crate) fn mount_path(&self, fd: u32) -> Option<&str> {
        let open = self.open.get(&fd).filter(|open| open.path.is_empty())?;
        Some(&self.mounts.get(open.mount as usize)?.path)
    }

    fn descriptor(&self, fd: u32) -> Result<&Open, Errno> {
        self.open.get(&fd).ok_or(Errno::BADF)
    }

    /// The full name of a path that is relative to an open folder.
    fn resolve(&self, fd: u32, path: &[u8]) -> Result<(u32, String), Refused> {
        let base = self.descriptor(fd)?;
        if !matches!(self.inodes.get(&base.inode), Some(Inode::Folder)) {
            return Err(Errno::NOTDIR.into());
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let path = std::str::from_utf8(path).map_err(|_| Errno::ILSEQ)?;
        if path.is_empty() {
            return Err(Errno::NOENT.into());
        }
        // Out of the folder is where no grant reaches.
        if path.starts_with('/') {
            return Err(Refused::Denied);
        }
        let mut parts: Vec<&str> = base
            .path
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let own = parts.len();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.len() <= own => return Err(Refused::Denied),
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let full = parts.join("/");
        match full.len() <= PATH_BYTES_MAX {
            true => Ok((base.mount, full)),
            false => Err(Errno::NAMETOOLONG.into()),
        }
    }

    fn parent_is_folder(&self, name: &(u32, String)) -> Result<(), Errno> {
        let parent = name.1.rsplit_once('/').map_or("", |(parent, _)| parent);
        let inode = self.names.get(&(name.0, parent.to_owned()));
        match inode.and_then(|inode| self.inodes.get(inode)) {
            Some(Inode::Folder) => Ok(()),
            Some(Inode::File(_)) => Err(Errno::NOTDIR),
            None => Err(Errno::NOENT),
        }
    }

    fn may_write(&self, mount: u32) -> Result<(), Refused> {
        match self.mounts.get(mount as usize) {
            Some(mount) if mount.write => Ok(()),
            _ => Err(Refused::Denied),
        }
    }

    pub(crate) fn open(&mut self, fd: u32, path: &[u8], how: How) -> Result<u32, Refused> {
        let name = self.resolve(fd, path)?;
        if how.access.write || how.create || how.truncate {
            self.may_write(name.0)?;
        }
        let free = (FIRST_FD..).find(|fd| !self.open.contains_key(fd));
        let fd = free.filter(|_| self.open.len() < OPEN_MAX + self.mounts.len());
        let fd = fd.ok_or(Errno::MFILE)?;
        let how = How {
            folder: how.folder || path.ends_with(b"/"),
            ..how
        };
        let inode = match self.names.get(&name).copied() {
            Some(_) if how.create && how.exclusive => return Err(Errno::EXIST.into()),
            Some(inode) => inode,
            None if how.create && !how.folder => {
                self.parent_is_folder(&name)?;
                self.has_room()?;
                self.link(name.clone(), Inode::File(Vec::new()))
            }
            None => return Err(Errno::NOENT.into()),
        };
        match self.inodes.get_mut(&inode) {
            Some(Inode::File(_)) if how.folder => return Err(Errno::NOTDIR.into()),
            Some(Inode::Folder) if how.truncate => return Err(Errno::ISDIR.into()),
            Some(Inode::File(content)) if how.truncate => {
                self.bytes -= content.len() as u64;
                content.clear();
            }
            Some(_) => {}
            None => return Err(Errno::IO.into()),
        }
        let open = Open {
            mount: name.0,
            path: name.1,
            inode,
            at: 0,
            access: how.access,
            flags: how.flags,
        };
        self.open.insert(fd, open);
        Ok(fd)
    }

    fn has_room(&self) -> Result<(), Errno> {
        match self.names.len() < FILES_MAX {
            true => Ok(()),
            false => Err(Errno::NOSPC),
        }
    }

    pub(crate) fn close(&mut self, fd: u32) -> Result<(), Errno> {
        let open = self.open.remove(&fd).ok_or(Errno::BADF)?;
        self.forget(open.inode);
        Ok(())
    }

    /// Drops a file that has neither a name nor a descriptor.
    fn forget(&mut self, inode: u64) {
        let named = self.names.values().any(|of| *of == inode);
        if named || self.open.values().any(|open| open.inode == inode) {
            return;
        }
        if let Some(Inode::File(content)) = self.inodes.remove(&inode) {
            self.bytes -= content.len() as u64;
        }
    }

    /// Moves a descriptor to another's place, closing that one.
    pub(crate) fn renumber(&mut self, from: u32, to: u32) -> Result<(), Errno> {
        self.descriptor(to)?;
        let open = self.open.get(&from).cloned().ok_or(Errno::BADF)?;
        if from != to {
            self.close(to)?;
            self.open.remove(&from);
            self.open.insert(to, open);
        }
        Ok(())
    }

    /// What it was opened for, and its flags.
    pub(crate) fn access(&self, fd: u32) -> Result<(Access, u16), Errno> {
        let open = self.descriptor(fd)?;
        Ok((open.access, open.flags))
    }

    pub(crate) fn set_flags(&mut self, fd: u32, flags: u16) -> Result<(), Errno> {
        self.open.get_mut(&fd).ok_or(Errno::BADF)?.flags = flags;
        Ok(())
    }

    pub(crate) fn stat(&self, fd: u32) -> Result<Stat, Errno> {
        self.stat_inode(self.descriptor(fd)?.inode)
    }

    pub(crate) fn stat_path(&self, fd: u32, path: &[u8]) -> Result<Stat, Refused> {
        let name = self.resolve(fd, path)?;
        let inode = self.names.get(&name).ok_or(Errno::NOENT)?;
        let stat = self.stat_inode(*inode)?;
        match path.ends_with(b"/") && !stat.folder {
            true => Err(Errno::NOTDIR.into()),
            false => Ok(stat),
        }
    }

    fn stat_inode(&self, inode: u64) -> Result<Stat, Errno> {
        match self.inodes.get(&inode) {
            Some(Inode::Folder) => Ok(Stat {
                inode,
                folder: true,
                bytes: 0,
            }),
            Some(Inode::File(content)) => Ok(Stat {
                inode,
                folder: false,
                bytes: content.len() as u64,
            }),
            None => Err(Errno::IO),
        }
    }

    /// What lies at `at`, or at the descriptor's own place, which then moves; at most `most` bytes.
    pub(crate) fn read(&mut self, fd: u32, at: Option<u64>, most: usize) -> Result<&[u8], Errno> {
        let open = self.open.get_mut(&fd).ok_or(Errno::BADF)?;
        if !open.access.read {
            return Err(Errno::BADF);
        }
        let Some(Inode::File(content)) = self.inodes.get(&open.inode) else {
            return Err(Errno::ISDIR);
        };
        let start = usize::try_from(at.unwrap_or(open.at)).unwrap_or(usize::MAX);
        let start = start.min(content.len());
        let end = start.saturating_add(most).min(content.len());
        if at.is_none() {
            open.at = open.at.max(end as u64);
        }
        Ok(&content[start..end])
    }

    pub(crate) fn write(&mut self, fd: u32, at: Option<u64>, bytes: &[u8]) -> Result<(), Errno> {
        let open = self.open.get_mut(&fd).ok_or(Errno::BADF)?;
        if !open.access.write {
            return Err(Errno::BADF);
        }
        let Some(Inode::File(content)) = self.inodes.get_mut(&open.inode) else {
            return Err(Errno::ISDIR);
        };
        let start = match at {
            Some(at) => at,
            None if open.flags & APPEND != 0 => content.len() as u64,
            None => open.at,
        };
        let end = start.checked_add(bytes.len() as u64).ok_or(Errno::FBIG)?;
        let grows = end.saturating_sub(content.len() as u64);
        if self.bytes.saturating_add(grows) > FILE_BYTES_MAX as u64 {
            return Err(Errno::NOSPC);
        }
        // Both fit: they are at most `FILE_BYTES_MAX` now.
        let (from, to) = (start as usize, end as usize);
        if content.len() < to {
            content.resize(to, 0);
        }
        content[from..to].copy_from_slice(bytes);
        self.bytes += grows;
        if at.is_none() {
            open.at = end;
        }
        Ok(())
    }

    pub(crate) fn set_size(&mut self, fd: u32, size: u64) -> Result<(), Errno> {
        let open = self.open.get(&fd).ok_or(Errno::BADF)?;
        if !open.access.write {
            return Err(Errno::BADF);
        }
        let Some(Inode::File(content)) = self.inodes.get_mut(&open.inode) else {
            return Err(Errno::ISDIR);
        };
        let others = self.bytes - content.len() as u64;
        if others.saturating_add(size) > FILE_BYTES_MAX as u64 {
            return Err(Errno::NOSPC);
        }
        content.resize(size as usize, 0);
        self.bytes = others + size;
        Ok(())
    }

    /// Makes the file at least so long.
    pub(crate) fn allocate(&mut self, fd: u32, from: u64, bytes: u64) -> Result<(), Errno> {
        let end = from.checked_add(bytes).ok_or(Errno::FBIG)?;
        let stat = self.stat(fd)?;
        if stat.folder {
            return Err(Errno::BADF);
        }
        self.set_size(fd, end.max(stat.bytes))
    }

    /// `whence`: 0 from the start, 1 from here, 2 from the end.
    pub(crate) fn seek(&mut self, fd: u32, by: i64, whence: u32) -> Result<u64, Errno> {
        let open = self.open.get_mut(&fd).ok_or(Errno::BADF)?;
        let Some(Inode::File(content)) = self.inodes.get(&open.inode) else {
            return Err(Errno::ISDIR);
        };
        let from = match whence {
            0 => 0,
            1 => open.at,
            2 => content.len() as u64,
            _ => return Err(Errno::INVAL),
        };
        open.at = from.checked_add_signed(by).ok_or(Errno::INVAL)?;
        Ok(open.at)
    }

    /// What lies in an open folder, in order: the names, each with what it is. At most [`FILES_MAX`].
    pub(crate) fn list(&self, fd: u32) -> Result<Vec<(String, Stat)>, Errno> {
        let open = self.descriptor(fd)?;
        if !self.stat(fd)?.folder {
            return Err(Errno::NOTDIR);
        }
        let prefix = match open.path.as_str() {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let from = (open.mount, prefix.clone());
        // A guest never sees above its folder: what is above a root is the root.
        let parent = open.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let above = self.names.get(&(open.mount, parent.to_owned()));
        let above = self.stat_inode(above.copied().unwrap_or(open.inode))?;
        let mut found = vec![(".".to_owned(), self.stat(fd)?), ("..".to_owned(), above)];
        for ((mount, path), inode) in self.names.range(from..) {
            if *mount != open.mount || !path.starts_with(&prefix) {
                break;
            }
            let name = &path[prefix.len()..];
            if !name.is_empty() && !name.contains('/') {
                found.push((name.to_owned(), self.stat_inode(*inode)?));
            }
        }
        Ok(found)
    }

    pub(crate) fn make_folder(&mut self, fd: u32, path: &[u8]) -> Result<(), Refused> {
        let name = self.resolve(fd, path)?;
        self.may_write(name.0)?;
        if self.names.contains_key(&name) {
            return Err(Errno::EXIST.into());
        }
        self.parent_is_folder(&name)?;
        self.has_room()?;
        self.link(name, Inode::Folder);
        Ok(())
    }

    /// Takes a name away: a folder's, which must be empty, or a file's.
    pub(crate) fn remove(&mut self, fd: u32, path: &[u8], folder: bool) -> Result<(), Refused> {
        let name = self.resolve(fd, path)?;
        self.may_write(name.0)?;
        let inode = *self.names.get(&name).ok_or(Errno::NOENT)?;
        match (
            self.stat_inode(inode)?.folder,
            folder || path.ends_with(b"/"),
        ) {
            (true, _) if !folder => return Err(Errno::ISDIR.into()),
            (false, true) => return Err(Errno::NOTDIR.into()),
            (true, true) if name.1.is_empty() => return Err(Errno::BUSY.into()),
            (true, true) if self.has_children(&name) => return Err(Errno::NOTEMPTY.into()),
            _ => {}
        }
        self.names.remove(&name);
        self.forget(inode);
        Ok(())
    }

    fn has_children(&self, name: &(u32, String)) -> bool {
        let prefix = format!("{}/", name.1);
        let mut after = self.names.range((name.0, prefix.clone())..);
        after
            .next()
            .is_some_and(|((mount, path), _)| *mount == name.0 && path.starts_with(&prefix))
    }

    /// Gives a file or a folder another name, in place of a file or an empty folder that has it.
    pub(crate) fn rename(
        &mut self,
        fd: u32,
        path: &[u8],
        to: u32,
        new: &[u8],
    ) -> Result<(), Refused> {
        let (from, to) = (self.resolve(fd, path)?, self.resolve(to, new)?);
        self.may_write(from.0)?;
        self.may_write(to.0)?;
        let inode = *self.names.get(&from).ok_or(Errno::NOENT)?;
        let folder = self.stat_inode(inode)?.folder;
        if !folder && (path.ends_with(b"/") || new.ends_with(b"/")) {
            return Err(Errno::NOTDIR.into());
        }
        if from == to {
            return Ok(());
        }
        let below = format!("{}/", from.1);
        if from.1.is_empty() || to.0 == from.0 && to.1.starts_with(&below) {
            return Err(Errno::INVAL.into());
        }
        self.parent_is_folder(&to)?;
        let before = self.names.get(&to).copied();
        if let Some(before) = before {
            match (folder, self.stat_inode(before)?.folder) {
                (false, true) => return Err(Errno::ISDIR.into()),
                (true, false) => return Err(Errno::NOTDIR.into()),
                (true, true) if self.has_children(&to) || to.1.is_empty() => {
                    return Err(Errno::NOTEMPTY.into());
                }
                _ => {}
            }
        }
        // The folder's own content moves with it.
        let within = self.names.range((from.0, below.clone())..);
        let within =
            within.take_while(|((mount, path), _)| *mount == from.0 && path.starts_with(&below));
        let mut moved: Vec<(String, u64)> = within
            .map(|((_, path), inode)| (path[from.1.len()..].to_owned(), *inode))
            .collect();
        moved.push((String::new(), inode));
        if moved
            .iter()
            .any(|(rest, _)| to.1.len() + rest.len() > PATH_BYTES_MAX)
        {
            return Err(Errno::NAMETOOLONG.into());
        }
        for (rest, inode) in moved {
            self.names.remove(&(from.0, format!("{}{rest}", from.1)));
            self.names.insert((to.0, format!("{}{rest}", to.1)), inode);
        }
        before.into_iter().for_each(|before| self.forget(before));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const READ: How = How {
        create: false,
        folder: false,
        exclusive: false,
        truncate: false,
        flags: 0,
        access: Access {
            read: true,
            write: false,
        },
    };
    const WRITE: How = How {
        create: true,
        access: Access {
            read: true,
            write: true,
        },
        ..READ
    };

    fn two_folders() -> Files {
        let fixed = Folder {
            write: false,
            files: [("sub/greeting".to_owned(), "hello".to_owned())].into(),
        };
        let own = Folder {
            write: true,
            ..Folder::default()
        };
        Files::new(&[("/fixed".to_owned(), fixed), ("/own".to_owned(), own)].into())
    }

    #[test]
    fn a_folder_that_was_moved_to_another_descriptor_is_told_by_its_own_path() {
        let mut files = two_folders();
        files.renumber(FIRST_FD + 1, FIRST_FD).unwrap();
        assert_eq!(files.mount_path(FIRST_FD), Some("/own"));
        assert_eq!(files.mount_path(FIRST_FD + 1), None);
        assert_eq!(files.mount_path(0), None);
    }

    #[test]
    fn a_guest_reads_what_it_was_given_and_cannot_change_it() {
        let mut files = two_folders();
        let fd = files.open(3, b"sub/../sub/greeting", READ).unwrap();
        assert_eq!(files.read(fd, None, 3).unwrap(), b"hel");
        assert_eq!(files.read(fd, None, 9).unwrap(), b"lo");
        assert_eq!(files.read(fd, Some(1), 2).unwrap(), b"el");
        assert_eq!(files.write(fd, None, b"x"), Err(Errno::BADF));
        assert_eq!(files.open(3, b"new", WRITE), Err(Refused::Denied));
        assert_eq!(
            files.remove(3, b"sub/greeting", false),
            Err(Refused::Denied)
        );
    }

    #[test]
    fn no_path_leads_out_of_its_folder() {
        let mut files = two_folders();
        for path in [&b"../own"[..], b"/etc/passwd", b"sub/../../own", b".."] {
            assert_eq!(files.open(3, path, READ), Err(Refused::Denied), "{path:?}");
        }
        let sub = files
            .open(
                3,
                b"sub",
                How {
                    folder: true,
                    ..READ
                },
            )
            .unwrap();
        assert_eq!(files.open(sub, b"../sub", READ), Err(Refused::Denied));
        assert_eq!(files.open(3, b"\xff", READ), Err(Errno::ILSEQ.into()));
        let long = vec![b'a'; PATH_BYTES_MAX + 1];
        assert_eq!(files.open(3, &long, READ), Err(Errno::NAMETOOLONG.into()));
    }

    #[test]
    fn files_and_descriptors_end_at_their_limits() {
        let mut files = two_folders();
        let fd = files.open(4, b"a", WRITE).unwrap();
        let most = vec![7; FILE_BYTES_MAX - 5];
        assert_eq!(files.write(fd, None, &most), Ok(()));
        assert_eq!(files.write(fd, None, b"x"), Err(Errno::NOSPC));
        assert_eq!(files.write(fd, Some(u64::MAX), b"x"), Err(Errno::FBIG));
        assert_eq!(files.set_size(fd, u64::MAX), Err(Errno::NOSPC));
        assert_eq!(files.set_size(fd, 0), Ok(()));
        let opened = (0..).map_while(|_| files.open(4, b"a", READ).ok()).count();
        assert_eq!(opened, OPEN_MAX - 1);
        assert_eq!(files.open(4, b"a", READ), Err(Errno::MFILE.into()));
        let made = |files: &mut Files, n: usize| files.make_folder(4, format!("f{n}").as_bytes());
        let folders = (0..).map_while(|n| made(&mut files, n).ok()).count();
        assert!(folders < FILES_MAX);
        assert_eq!(made(&mut files, FILES_MAX), Err(Errno::NOSPC.into()));
    }

    #[test]
    fn an_unlinked_file_lives_as_long_as_its_descriptor() {
        let mut files = two_folders();
        let fd = files.open(4, b"a", WRITE).unwrap();
        files.write(fd, None, b"still here").unwrap();
        files.remove(4, b"a", false).unwrap();
        assert_eq!(files.open(4, b"a", READ), Err(Errno::NOENT.into()));
        assert_eq!(files.read(fd, Some(0), 99).unwrap(), b"still here");
        files.close(fd).unwrap();
        assert_eq!(files.bytes, 5, "only what was there at first");
    }

    #[test]
    fn a_folder_lists_its_own_and_goes_only_when_empty() {
        let mut files = two_folders();
        files.make_folder(4, b"d").unwrap();
        files.open(4, b"d/x", WRITE).unwrap();
        files.open(4, b"y", WRITE).unwrap();
        let names: Vec<_> = files
            .list(4)
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, [".", "..", "d", "y"]);
        assert_eq!(files.remove(4, b"d", true), Err(Errno::NOTEMPTY.into()));
        files.rename(4, b"d/x", 4, b"y").unwrap();
        files.remove(4, b"d", true).unwrap();
        assert_eq!(files.list(4).unwrap().len(), 3);
        assert_eq!(files.remove(4, b".", true), Err(Errno::BUSY.into()));
    }

    #[test]
    fn a_folder_takes_its_content_to_its_new_name() {
        let mut files = two_folders();
        files.make_folder(4, b"a").unwrap();
        files.make_folder(4, b"a/b").unwrap();
        files.open(4, b"a/b/c", WRITE).unwrap();
        files.make_folder(4, b"full").unwrap();
        files.open(4, b"full/x", WRITE).unwrap();
        let rename = |files: &mut Files, from: &[u8], to: &[u8]| files.rename(4, from, 4, to);
        assert_eq!(rename(&mut files, b"a", b"a/b/d"), Err(Errno::INVAL.into()));
        assert_eq!(
            rename(&mut files, b"a", b"full"),
            Err(Errno::NOTEMPTY.into())
        );
        assert_eq!(
            rename(&mut files, b"a", b"full/x"),
            Err(Errno::NOTDIR.into())
        );
        assert_eq!(
            rename(&mut files, b"full/x", b"a"),
            Err(Errno::ISDIR.into())
        );
        assert_eq!(
            rename(&mut files, b"full/x/", b"y"),
            Err(Errno::NOTDIR.into())
        );
        rename(&mut files, b"a", b"z").unwrap();
        assert!(files.stat_path(4, b"z/b/c").is_ok());
        assert_eq!(files.stat_path(4, b"a"), Err(Errno::NOENT.into()));
        assert_eq!(files.stat_path(4, b"z/b/c/"), Err(Errno::NOTDIR.into()));
    }
}
