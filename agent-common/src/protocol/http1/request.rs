use super::super::window::Window;
use super::framing::*;
use crate::abi::Settings;
#[repr(u8)]
#[derive(Clone,Copy)]
pub enum Method { Other=0, Get, Head, Post, Put, Delete, Connect, Options, Trace, Patch, Query }
#[repr(C)]
#[derive(Clone,Copy,Default)]
pub struct Request { pub trace_id:[u8;16], pub parent_id:[u8;8], pub tenant:u64, pub host_hash:u32, pub context_format:u8, pub context_flags:u8, pub method:u8, pub http10:u8, pub user_agent_excluded:u8, pub path_cut:u8, pub otlp:u8, pub s0:u8, pub path_len:u16, pub s1:[u8;2], pub path:[u64;32] }
impl Request { #[inline(always)] pub fn clear(&mut self) { self.trace_id=[0;16]; self.parent_id=[0;8]; self.tenant=0; self.host_hash=0; self.context_format=0; self.context_flags=0; self.method=0; self.http10=0; self.user_agent_excluded=0; self.path_cut=0; self.otlp=0; self.s0=0; self.path_len=0; self.s1=[0;2]; } }
#[inline(always)]
pub fn request_line_or_header(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window, s: &Settings) -> u32 { r.path_len = w.byte(c.pos) as u16; f.left = s.flags as u64; step::MORE }
