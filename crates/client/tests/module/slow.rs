//! A module of Redis with one command that a thread answers: `SLOW.ANSWER milliseconds`. Compiled
//! by the test that loads it; the workspace does not, since what a module is called by is C.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::sync::OnceLock;
use std::time::Duration;

type Handler = extern "C" fn(*mut c_void, *mut *mut c_void, c_int) -> c_int;

/// What Redis is asked for, once.
struct Api {
    block: extern "C" fn(
        *mut c_void,
        Handler,
        *const c_void,
        *const c_void,
        c_longlong,
    ) -> *mut c_void,
    unblock: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
    reply: extern "C" fn(*mut c_void, c_longlong) -> c_int,
    number: extern "C" fn(*const c_void, *mut c_longlong) -> c_int,
}

static API: OnceLock<Api> = OnceLock::new();

extern "C" fn answer(ctx: *mut c_void, _words: *mut *mut c_void, _count: c_int) -> c_int {
    (API.get().unwrap().reply)(ctx, 7)
}

extern "C" fn slow(ctx: *mut c_void, words: *mut *mut c_void, count: c_int) -> c_int {
    let api = API.get().unwrap();
    let mut time = 0;
    if count == 2 {
        (api.number)(unsafe { *words.add(1) }, &mut time);
    }
    let blocked = (api.block)(ctx, answer, std::ptr::null(), std::ptr::null(), 0) as usize;
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(time as u64));
        (api.unblock)(blocked as *mut c_void, std::ptr::null_mut());
    });
    0
}

/// # Safety
/// Called by Redis, as it loads the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RedisModule_OnLoad(ctx: *mut c_void, _: *mut c_void, _: c_int) -> c_int {
    type Get = extern "C" fn(*const c_char, *mut c_void) -> c_int;
    // The first word of a context leads to everything else.
    let get: Get = unsafe { std::mem::transmute(*ctx.cast::<*const c_void>()) };
    macro_rules! api {
        ($name:literal) => {{
            let name: &CStr = $name;
            let mut found: *const c_void = std::ptr::null();
            get(name.as_ptr(), (&raw mut found).cast());
            unsafe { std::mem::transmute(found) }
        }};
    }
    let attribs: extern "C" fn(*mut c_void, *const c_char, c_int, c_int) =
        api!(c"RedisModule_SetModuleAttribs");
    let create: extern "C" fn(
        *mut c_void,
        *const c_char,
        Handler,
        *const c_char,
        c_int,
        c_int,
        c_int,
    ) -> c_int = api!(c"RedisModule_CreateCommand");
    let api = Api {
        block: api!(c"RedisModule_BlockClient"),
        unblock: api!(c"RedisModule_UnblockClient"),
        reply: api!(c"RedisModule_ReplyWithLongLong"),
        number: api!(c"RedisModule_StringToLongLong"),
    };
    let _ = API.set(api);
    attribs(ctx, c"slow".as_ptr(), 1, 1);
    create(ctx, c"slow.answer".as_ptr(), slow, c"".as_ptr(), 0, 0, 0)
}
