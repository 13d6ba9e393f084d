//! The functions of preview 1, as a guest imports them.
//!
//! Owns: the one list of what each name does. Never decides what is granted.

use std::time::Duration;

use wasmtime::{Caller, Extern, FuncType, Linker, Val, ValType};

use super::view::{CHARACTERS, RIGHT_READ, RIGHT_WRITE, View, Waits};
use super::{Errno, Exit, FUNCTIONS, MODULE, REAL_GRAIN, REFUSED, VIRTUAL_STEP, Wasi};
use crate::files::{Access, FIRST_FD, How};
use crate::policy::Clock;
use crate::rewrite;

/// Defines every function of preview 1. `get` finds the [`Wasi`] in a store's data. Instances must be
/// made and called by the engine's async functions, because a guest may sleep.
///
/// # Errors
/// The linker has one of the names already.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    get: fn(&mut T) -> &mut Wasi,
) -> wasmtime::Result<()> {
    /// Defines one: what follows has the memory and the WASI as a [`View`].
    macro_rules! define {
        ($name:literal, |$view:ident $(, $arg:ident: $ty:ty)*| $body:expr) => {
            linker.func_wrap(MODULE, $name, move |mut caller: Caller<'_, T> $(, $arg: $ty)*| -> wasmtime::Result<i32> {
                answer(&mut caller, get, |$view: &mut View<'_>| -> Result<(), Errno> { $body })
            })?;
        };
    }

    define!("args_get", |v, table: u32, at: u32| {
        let args = v.wasi.policy.args.clone();
        v.put_strings(table, at, &args)
    });
    define!("args_sizes_get", |v, count: u32, bytes: u32| {
        let args = v.wasi.policy.args.clone();
        v.put_sizes(count, bytes, &args)
    });
    define!("environ_get", |v, table: u32, at: u32| {
        let env = v.environment();
        v.put_strings(table, at, &env)
    });
    define!("environ_sizes_get", |v, count: u32, bytes: u32| {
        let env = v.environment();
        v.put_sizes(count, bytes, &env)
    });
    define!("clock_res_get", |v, clock: u32, out: u32| {
        let grain = match (v.wasi.policy.clock, clock) {
            (_, 4..) => return Err(Errno::INVAL),
            (Clock::Denied, _) => return Err(v.wasi.denied("clock_res_get", "a clock")),
            (Clock::Virtual, _) => VIRTUAL_STEP,
            (Clock::Real, _) => REAL_GRAIN,
        };
        v.put(out, &(grain.as_nanos() as u64).to_le_bytes())
    });
    define!("clock_time_get", |v,
                               clock: u32,
                               _precision: u64,
                               out: u32| {
        v.range(out, 8)?;
        let time = v.wasi.time(clock)?;
        v.put(out, &time.to_le_bytes())
    });
    define!("random_get", |v, at: u32, len: u32| {
        let range = v.range(at, len)?;
        v.wasi.fill_random(&mut v.memory[range])?;
        v.copied += u64::from(len);
        Ok(())
    });
    define!("sched_yield", |_v| Ok(()));
    define!("proc_raise", |_v, _signal: u32| Err(Errno::NOSYS));

    define!("fd_write", |v, fd: u32, at: u32, count: u32, out: u32| {
        v.write(fd, None, (at, count), out)
    });
    define!("fd_pwrite", |v,
                          fd: u32,
                          at: u32,
                          count: u32,
                          offset: u64,
                          out: u32| {
        v.write(fd, Some(offset), (at, count), out)
    });
    define!("fd_read", |v, fd: u32, at: u32, count: u32, out: u32| {
        v.read(fd, None, (at, count), out)
    });
    define!("fd_pread", |v,
                         fd: u32,
                         at: u32,
                         count: u32,
                         offset: u64,
                         out: u32| {
        v.read(fd, Some(offset), (at, count), out)
    });
    define!("fd_seek", |v, fd: u32, by: i64, whence: u32, out: u32| {
        if fd < FIRST_FD {
            return Err(Errno::SPIPE);
        }
        v.range(out, 8)?;
        let at = v.wasi.state.files.seek(fd, by, whence)?;
        v.put(out, &at.to_le_bytes())
    });
    define!("fd_tell", |v, fd: u32, out: u32| {
        if fd < FIRST_FD {
            return Err(Errno::SPIPE);
        }
        let at = v.wasi.state.files.seek(fd, 0, 1)?;
        v.put(out, &at.to_le_bytes())
    });
    define!("fd_close", |v, fd: u32| match fd {
        // They are the host's; a program that closes them at its end means well.
        0..FIRST_FD => Ok(()),
        fd => v.wasi.state.files.close(fd),
    });
    define!("fd_renumber", |v, from: u32, to: u32| v
        .wasi
        .state
        .files
        .renumber(from, to));
    define!("fd_sync", |v, fd: u32| v
        .wasi
        .state
        .files
        .access(fd)
        .map(drop));
    define!("fd_datasync", |v, fd: u32| v
        .wasi
        .state
        .files
        .access(fd)
        .map(drop));
    define!("fd_advise", |v,
                          fd: u32,
                          _at: u64,
                          _len: u64,
                          _advice: u32| {
        v.wasi.state.files.access(fd).map(drop)
    });
    define!("fd_fdstat_get", |v, fd: u32, out: u32| v
        .put_fdstat(fd, out));
    define!("fd_fdstat_set_flags", |v, fd: u32, flags: u32| match fd {
        // Whether a call waits makes no difference to files in memory.
        0..FIRST_FD => Ok(()),
        fd => v.wasi.state.files.set_flags(fd, flags as u16),
    });
    define!(
        "fd_fdstat_set_rights",
        |v, fd: u32, _base: u64, _inheriting: u64| v.wasi.state.files.access(fd).map(drop)
    );
    define!("fd_filestat_get", |v, fd: u32, out: u32| {
        if fd < FIRST_FD {
            let mut bytes = [0; 64];
            bytes[16] = CHARACTERS;
            return v.put(out, &bytes);
        }
        let stat = v.wasi.state.files.stat(fd)?;
        v.put_stat(out, stat)
    });
    define!("fd_allocate", |v, fd: u32, from: u64, bytes: u64| {
        v.wasi.state.files.allocate(fd, from, bytes)
    });
    // There are no sockets, so whatever is there is none.
    define!("sock_shutdown", |v, fd: u32, _how: u32| match fd {
        0..FIRST_FD => Err(Errno::NOTSOCK),
        fd => v.wasi.state.files.access(fd).and(Err(Errno::NOTSOCK)),
    });
    define!("fd_filestat_set_size", |v, fd: u32, size: u64| {
        v.wasi.state.files.set_size(fd, size)
    });
    define!("fd_prestat_get", |v, fd: u32, out: u32| {
        let path = v.wasi.state.files.mount_path(fd).ok_or(Errno::BADF)?;
        let mut bytes = [0; 8];
        bytes[4..].copy_from_slice(&(path.len() as u32).to_le_bytes());
        v.put(out, &bytes)
    });
    define!("fd_prestat_dir_name", |v, fd: u32, at: u32, len: u32| {
        let path = v
            .wasi
            .state
            .files
            .mount_path(fd)
            .ok_or(Errno::BADF)?
            .to_owned();
        if path.len() > len as usize {
            return Err(Errno::NAMETOOLONG);
        }
        v.put(at, path.as_bytes())
    });
    define!("fd_readdir", |v,
                           fd: u32,
                           at: u32,
                           len: u32,
                           cookie: u64,
                           out: u32| {
        v.read_folder(fd, (at, len), cookie, out)
    });

    define!("path_open", |v,
                          fd: u32,
                          _lookup: u32,
                          at: u32,
                          len: u32,
                          oflags: u32,
                          rights: u64,
                          _inheriting: u64,
                          flags: u32,
                          out: u32| {
        v.range(out, 4)?;
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_open", fd)?;
        let how = How {
            create: oflags & 1 != 0,
            folder: oflags & 2 != 0,
            exclusive: oflags & 4 != 0,
            truncate: oflags & 8 != 0,
            flags: flags as u16,
            access: Access {
                read: rights & RIGHT_READ != 0 || rights & 1 << 14 != 0,
                write: rights & RIGHT_WRITE != 0,
            },
        };
        let opened = v.wasi.state.files.open(fd, &path, how);
        let fd = opened.map_err(|refused| v.wasi.refused("path_open", &path, refused))?;
        v.put(out, &fd.to_le_bytes())
    });
    define!(
        "path_filestat_get",
        |v, fd: u32, _lookup: u32, at: u32, len: u32, out: u32| {
            let path = v.path(at, len)?;
            v.wasi.no_folder("path_filestat_get", fd)?;
            let stat = v.wasi.state.files.stat_path(fd, &path);
            let stat =
                stat.map_err(|refused| v.wasi.refused("path_filestat_get", &path, refused))?;
            v.put_stat(out, stat)
        }
    );
    define!("path_create_directory", |v, fd: u32, at: u32, len: u32| {
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_create_directory", fd)?;
        let made = v.wasi.state.files.make_folder(fd, &path);
        made.map_err(|refused| v.wasi.refused("path_create_directory", &path, refused))
    });
    define!("path_unlink_file", |v, fd: u32, at: u32, len: u32| {
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_unlink_file", fd)?;
        let gone = v.wasi.state.files.remove(fd, &path, false);
        gone.map_err(|refused| v.wasi.refused("path_unlink_file", &path, refused))
    });
    define!("path_remove_directory", |v, fd: u32, at: u32, len: u32| {
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_remove_directory", fd)?;
        let gone = v.wasi.state.files.remove(fd, &path, true);
        gone.map_err(|refused| v.wasi.refused("path_remove_directory", &path, refused))
    });
    define!("path_rename", |v,
                            fd: u32,
                            at: u32,
                            len: u32,
                            to: u32,
                            new: u32,
                            new_len: u32| {
        let (path, new) = (v.path(at, len)?, v.path(new, new_len)?);
        v.wasi.no_folder("path_rename", fd)?;
        let done = v.wasi.state.files.rename(fd, &path, to, &new);
        done.map_err(|refused| v.wasi.refused("path_rename", &path, refused))
    });

    for name in REFUSED {
        define_refused(linker, get, name)?;
    }
    linker.func_wrap(MODULE, "proc_exit", |code: i32| -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(Exit(code)))
    })?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        move |mut caller: Caller<'_, T>, asked: (u32, u32, u32, u32)| {
            Box::new(async move { poll(&mut caller, get, asked).await })
        },
    )?;
    Ok(())
}

/// Runs one host call and turns what came of it into the number that the guest sees.
fn answer<T: 'static>(
    caller: &mut Caller<'_, T>,
    get: fn(&mut T) -> &mut Wasi,
    call: impl FnOnce(&mut View<'_>) -> Result<(), Errno>,
) -> wasmtime::Result<i32> {
    get(caller.data_mut()).budget.call()?;
    // The one that preview 1 asks for; or, of a module that hides it, the name that it has for us.
    let memory = caller.get_export("memory");
    let memory = memory.or_else(|| caller.get_export(rewrite::MEMORY));
    let Some(Extern::Memory(memory)) = memory else {
        return Ok(Errno::FAULT.0.into());
    };
    let (memory, data) = memory.data_and_store_mut(caller);
    let mut view = View {
        memory,
        wasi: get(data),
        copied: 0,
    };
    let done = call(&mut view);
    let copied = view.copied;
    view.wasi.budget.copied(copied)?;
    Ok(match done {
        Ok(()) => 0,
        Err(errno) => errno.0.into(),
    })
}

/// Defines a function that is denied always, with the type that preview 1 gives it.
fn define_refused<T: Send + 'static>(
    linker: &mut Linker<T>,
    get: fn(&mut T) -> &mut Wasi,
    name: &'static str,
) -> wasmtime::Result<()> {
    let found = FUNCTIONS.iter().find(|(of, _)| *of == name);
    let parameters = found.map_or("", |(_, parameters)| parameters);
    let types = parameters.chars().map(|c| match c {
        'I' => ValType::I64,
        _ => ValType::I32,
    });
    let ty = FuncType::new(linker.engine(), types, [ValType::I32]);
    linker.func_new(MODULE, name, ty, move |mut caller, _, results| {
        let wasi = get(caller.data_mut());
        wasi.budget.call()?;
        let errno = wasi.denied(name, "what is never granted");
        results[0] = Val::I32(errno.0.into());
        Ok(())
    })?;
    Ok(())
}

/// `poll_oneoff`: what is ready is told at once; otherwise it sleeps until the first clock's time, by
/// the virtual clock without any delay. The call's own deadline ends a sleep that is too long.
async fn poll<T: Send + 'static>(
    caller: &mut Caller<'_, T>,
    get: fn(&mut T) -> &mut Wasi,
    (subscriptions, out, count, told): (u32, u32, u32, u32),
) -> wasmtime::Result<i32> {
    let mut waits = Waits::default();
    let read = answer(caller, get, |view| {
        view.range(told, 4)?;
        view.range(out, count.saturating_mul(32))?;
        waits = view.subscriptions(subscriptions, count)?;
        Ok(())
    })?;
    if read != 0 {
        return Ok(read);
    }
    if waits.ready.is_empty() {
        let first = waits
            .clocks
            .iter()
            .map(|(wait, _)| *wait)
            .min()
            .unwrap_or(0);
        let wasi = get(caller.data_mut());
        if wasi.policy.clock == Clock::Virtual {
            wasi.state.lived = wasi.state.lived.saturating_add(first);
        } else {
            tokio::time::sleep(Duration::from_nanos(first)).await;
        }
        let due = waits.clocks.iter().filter(|(wait, _)| *wait <= first);
        waits.ready.extend(due.map(|(_, event)| *event));
    }
    answer(caller, get, |view| {
        for (nth, event) in (0_u32..).zip(&waits.ready) {
            view.put(out + nth * 32, event)?;
        }
        view.put(told, &(waits.ready.len() as u32).to_le_bytes())
    })
}
